package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.Place
import ai.edgevlm.image.ViewTokens
import ai.edgevlm.layout.Layout
import ai.edgevlm.layout.Marker
import ai.edgevlm.layout.Side
import ai.edgevlm.layout.Span

/** What a picture is in a prompt. */
public sealed interface Shown {
    /** Its views' tokens, in order. */
    public data class Views(val views: List<ViewTokens>) : Shown

    /**
     * A video: control text, and among it its views' tokens. [token]: the special token that stands there; empty: the image
     * token.
     */
    public data class Video(val parts: List<Part>, val token: String) : Shown

    /** One or the other: a [text] in which `{index}` is which of the prompt's videos it is, or [view]. */
    public data class Part(val text: String?, val view: ViewTokens?)
}

/** Token ids of a prompt, and where its views' tokens lie. */
public class Encoded(public val ids: IntArray, public val layout: Layout)

/** Builds prompts and reads answers with one bundle's tokenizer: Python's `edgevlm.inputs.prompt`. For any thread. */
public class Prompter(public val spec: PromptSpec, public val tokenizer: Tokenizer) {
    private val inner = tokenizer.inner()
    private val special = tokenizer.specials
    private val words = Words(special.keys)

    init {
        if (special[spec.imageToken] != spec.imageTokenId) {
            throw EdgeVLMException.BundleError(
                "The tokenizer does not have '${spec.imageToken.take(100)}' as the special token ${spec.imageTokenId}: it " +
                    "belongs to another model; export the bundle again.",
            )
        }
    }

    /**
     * A conversation's ids. [pictures]: what stands at its pictures, in their order. [thinking]: as [Chat.switched].
     *
     * Special tokens spelled out in the user's text are text: a question can neither end its turn nor add an image.
     */
    public fun encode(
        messages: List<Message>,
        pictures: List<Shown> = emptyList(),
        addGenerationPrompt: Boolean = true,
        thinking: Boolean? = null,
    ): Encoded = Writer(pictures).write(Renderer(spec.chat.switched(thinking)).render(messages, pictures.size, addGenerationPrompt))

    /** The text of ids; bytes that are not UTF-8 read as U+FFFD. [special]: with special tokens spelled. */
    public fun decode(ids: IntArray, special: Boolean = false): String = tokenizer.decode(ids, special)

    /** The same, token by token. */
    public fun stream(): TextStream = tokenizer.stream()

    private inner class Writer(private val pictures: List<Shown>) {
        private val ids = Ints(256)
        private val pending = StringBuilder() // text up to the next special token is encoded in one piece
        private var characters = 0L
        private val spans = ArrayList<Span>()
        private val places = ArrayList<Place?>()
        private val first = if (spec.addBos) 1 else 0

        fun write(rendered: List<Rendered>): Encoded {
            var next = 0
            for (piece in rendered) {
                when (piece) {
                    is Rendered.Control -> control(piece.text)
                    is Rendered.User -> text(piece.text)
                    is Rendered.Answer -> {
                        flush()
                        ids.addAll(piece.ids)
                    }
                    Rendered.Picture -> picture(next++)
                }
            }
            flush()
            val all = (if (spec.addBos) intArrayOf(spec.bosId!!) else IntArray(0)) + ids.toArray()
            val rows = if (pictures.isEmpty()) emptyMap() else spec.markers.associate { it.tokenId to it.row }
            val markers = if (rows.isEmpty()) emptyList() else all.indices.mapNotNull { at -> rows[all[at]]?.let { Marker(at, it) } }
            val laid = if (spec.canvas.isEmpty()) spans else Layout.onCanvas(spans, places, all, spec.canvas.toSet())
            return Encoded(all, Layout(all.size, laid, markers))
        }

        private fun control(written: String) {
            var from = 0
            var at = 0
            while (at < written.length) {
                val end = words.match(written, at)
                if (end < 0) {
                    at++
                    continue
                }
                text(written.substring(from, at))
                token(special.getValue(written.substring(at, end)), 1)
                from = end
                at = end
            }
            text(written.substring(from))
        }

        private fun text(written: String) {
            characters += written.codePointCount(0, written.length)
            checkLength(characters)
            pending.append(written)
        }

        private fun flush() {
            if (pending.isEmpty()) return
            val rules = if (ids.size > 0) inner else tokenizer
            ids.addAll(rules.encode(pending.toString()))
            pending.setLength(0)
        }

        /** The position of the first of [times] tokens. */
        private fun token(id: Int, times: Int): Int {
            flush()
            val start = ids.size
            repeat(times) { ids.add(id) }
            return start + first
        }

        private fun picture(number: Int) {
            val own = pictures[number]
            val index = pictures.subList(0, number).count { (it is Shown.Video) == (own is Shown.Video) }.toString()
            if (own is Shown.Video) {
                val token = if (own.token.isEmpty()) spec.imageTokenId else special[own.token]
                    ?: throw EdgeVLMException.BundleError(
                        "The tokenizer has no special token '${own.token.take(100)}' for videos: export the bundle again.",
                    )
                for (part in own.parts) {
                    part.text?.let { control(it.replace("{index}", index)) }
                    part.view?.let { view(it, token) }
                }
                return
            }
            if (pictures.size > 1) control(spec.picture.number.replace("{index}", index))
            views((own as Shown.Views).views, index)
        }

        private fun views(views: List<ViewTokens>, index: String) {
            val around = spec.picture
            control(around.open.replace("{index}", index))
            var before: Place? = null
            views.forEachIndexed { number, view ->
                val place = view.place
                if (place == null) {
                    control(if (views.size > 1) around.whole else around.alone)
                } else {
                    if (before != null) control(if (before.row == place.row) around.tileJoin else around.rowJoin)
                    control(around.tile.replace("{row}", place.row.toString()).replace("{col}", place.column.toString()))
                }
                if (minOf(view.rows, view.columns) < 1) {
                    throw EdgeVLMException("A view of ${view.rows} x ${view.columns} image tokens is none: give a larger picture.")
                }
                view(view, spec.imageTokenId)
                before = place
                if (place == null) control(around.wholeClose) else if (views.getOrNull(number + 1)?.place?.row != place.row) control(around.rowClose)
            }
            control(around.close)
        }

        /** A view's image tokens, row by row where something stands between rows. */
        private fun view(view: ViewTokens, token: Int) {
            val lines = if (spec.picture.lineBreak.isEmpty()) 1 else view.rows
            val count = view.frames * view.rows * view.columns
            val starts = IntArray(lines) { line ->
                if (line > 0) control(spec.picture.lineBreak)
                token(token, count / lines)
            }
            val gap = if (lines > 1) starts[1] - starts[0] - view.columns else 0
            spans += Span(starts[0], Side(view.rows, view.columns), view.packed, gap, view.frames, view.step)
            places += view.place
        }
    }
}
