package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException

/** A part of a text. [first]: it begins where the whole text does. */
internal class Piece(val codes: IntArray, val start: Int, val end: Int, val first: Boolean)

/** One pre-tokenizer: pieces to smaller pieces. */
internal fun interface Cut {
    fun cut(piece: Piece, out: (Piece) -> Unit)
}

/** What becomes of the matches of a pattern. */
internal enum class Behavior { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS }

/** Matches of a pattern, in order: calls its argument with start and end of each. */
internal fun interface Matches {
    fun each(codes: IntArray, start: Int, end: Int, found: (Int, Int) -> Unit)
}

/** The library's `NormalizedString::split`. */
internal class Split(private val matches: Matches, private val behavior: Behavior, private val invert: Boolean) : Cut {
    override fun cut(piece: Piece, out: (Piece) -> Unit) {
        val parts = Parts(piece)
        if (behavior == Behavior.ISOLATED) {
            var at = piece.start
            matches.each(piece.codes, piece.start, piece.end) { start, end ->
                if (at < start) out(parts.piece(at, start))
                out(parts.piece(start, end))
                at = end
            }
            if (at < piece.end) out(parts.piece(at, piece.end))
            return
        }
        val marked = Ints() // start, end, whether it is a match, of everything
        fun mark(start: Int, end: Int, match: Boolean) {
            marked.add(start)
            marked.add(end)
            marked.add(if (match != invert) 1 else 0)
        }
        var at = piece.start
        matches.each(piece.codes, piece.start, piece.end) { start, end ->
            if (at < start) mark(at, start, false)
            mark(start, end, true)
            at = end
        }
        if (at < piece.end) mark(at, piece.end, false)
        val merged = if (behavior == Behavior.MERGED_WITH_NEXT) backwards(marked) else forwards(marked)
        for (i in 0 until merged.size step 2) if (merged[i] < merged[i + 1]) out(parts.piece(merged[i], merged[i + 1]))
    }

    private fun forwards(marked: Ints): Ints {
        val out = Ints()
        var before = false
        for (i in 0 until marked.size step 3) {
            val match = marked[i + 2] == 1
            if (match && behavior == Behavior.REMOVED) continue
            val joins = when (behavior) {
                Behavior.MERGED_WITH_PREVIOUS -> match && !before
                Behavior.CONTIGUOUS -> match == before
                else -> false
            }
            before = match
            if (joins && out.size > 0) {
                out[out.size - 1] = marked[i + 1]
            } else {
                out.add(marked[i])
                out.add(marked[i + 1])
            }
        }
        return out
    }

    private fun backwards(marked: Ints): Ints {
        val out = ArrayList<IntArray>()
        var before = false
        for (i in marked.size - 3 downTo 0 step 3) {
            val match = marked[i + 2] == 1
            if (match && !before && out.isNotEmpty()) out.last()[0] = marked[i] else out += intArrayOf(marked[i], marked[i + 1])
            before = match
        }
        return Ints().also { flat -> for (each in out.asReversed()) flat.addAll(each) }
    }

    private class Parts(private val piece: Piece) {
        fun piece(start: Int, end: Int) = Piece(piece.codes, start, end, piece.first && start == piece.start)
    }
}

/** Matches of an expression. */
internal class ByExpression(expression: String) : Matches {
    private val scanner = Scanner(expression)

    override fun each(codes: IntArray, start: Int, end: Int, found: (Int, Int) -> Unit) = scanner.each(codes, start, end, found)
}

/** Matches of a text that stands there letter by letter. */
internal class ByText(text: String) : Matches {
    private val wanted = text.codePointArray()

    override fun each(codes: IntArray, start: Int, end: Int, found: (Int, Int) -> Unit) {
        if (wanted.isEmpty()) return
        var at = start
        while (at + wanted.size <= end) {
            if (wanted.indices.all { codes[at + it] == wanted[it] }) {
                found(at, at + wanted.size)
                at += wanted.size
            } else {
                at++
            }
        }
    }
}

/** Matches of single characters with a flag of [Unicode]. */
internal class ByFlag(private val flag: Int) : Matches {
    override fun each(codes: IntArray, start: Int, end: Int, found: (Int, Int) -> Unit) {
        for (i in start until end) if (Unicode.has(codes[i], flag)) found(i, i + 1)
    }
}

/** SentencePiece's "▁" for spaces. [scheme]: "always", "first" or "never" puts one before a text. */
internal class Metaspace(private val mark: Int, private val scheme: String, split: Boolean) : Cut {
    private val split: Cut? = if (split) Split(ByText(String(Character.toChars(mark))), Behavior.MERGED_WITH_NEXT, false) else null

    override fun cut(piece: Piece, out: (Piece) -> Unit) {
        val prepends = when (scheme) {
            "always" -> true
            "first" -> piece.first
            else -> false
        }
        val written = Ints(piece.end - piece.start + 1)
        val first = piece.codes[piece.start]
        if (prepends && first != mark && first != ' '.code) written.add(mark)
        for (i in piece.start until piece.end) written.add(if (piece.codes[i] == ' '.code) mark else piece.codes[i])
        val made = Piece(written.toArray(), 0, written.size, piece.first)
        if (split == null) out(made) else split.cut(made, out)
    }

    /** The same behind the beginning of a prompt. */
    fun inner(): Metaspace = if (scheme == "first") Metaspace(mark, "never", split != null) else this
}

/** GPT-2's words, the space before a text where it is asked for. The bytes are spelled by the model itself. */
internal class ByteWords(private val prefix: Boolean, words: Boolean) : Cut {
    private val words: Cut? = if (words) Split(ByExpression(EXPRESSION), Behavior.ISOLATED, false) else null

    override fun cut(piece: Piece, out: (Piece) -> Unit) {
        var own = piece
        if (prefix && piece.codes[piece.start] != ' '.code) {
            val written = IntArray(piece.end - piece.start + 1)
            written[0] = ' '.code
            System.arraycopy(piece.codes, piece.start, written, 1, written.size - 1)
            own = Piece(written, 0, written.size, piece.first)
        }
        if (words == null) out(own) else words.cut(own, out)
    }

    private companion object {
        const val EXPRESSION = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
    }
}

/** Several cuts, one after the other. */
internal class Cuts(val steps: List<Cut>) : Cut {
    override fun cut(piece: Piece, out: (Piece) -> Unit) = cut(piece, 0, out)

    private fun cut(piece: Piece, step: Int, out: (Piece) -> Unit) {
        if (step == steps.size) return out(piece)
        steps[step].cut(piece) { cut(it, step + 1, out) }
    }

    fun inner(): Cuts = Cuts(steps.map { if (it is Metaspace) it.inner() else it })
}

internal fun unsupported(what: String): EdgeVLMException =
    EdgeVLMException.Unsupported("The tokenizer $what, which this SDK does not know: use another model, or a newer SDK.")
