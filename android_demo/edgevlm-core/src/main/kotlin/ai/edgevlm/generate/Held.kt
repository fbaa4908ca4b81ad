package ai.edgevlm.generate

import ai.edgevlm.bundle.ModelSpec
import ai.edgevlm.layout.Rows
import ai.edgevlm.layout.unchanged

/**
 * The prompt and the answer whose states a decoder holds, and how much of a new prompt that is: Python's
 * `edgevlm.generate.held`. The longest beginning that is held is kept, and only the rest is read.
 *
 * States that are overwritten cannot be cut. They are copied where a later prompt may part from this one, behind the
 * last picture and before each new turn. [reuse]: false reads every prompt whole.
 */
internal class Held(private val decoder: Decoder, private val spec: ModelSpec, private val reuse: Boolean) {
    private var prompt: Prompt? = null
    private var answer: List<Int> = emptyList()
    private var copies = HashMap<Int, Map<String, FloatArray>>() // of overwritten states, by positions before them
    private val forks = reuse && spec.replaces

    /** Trust nothing: a call was interrupted. */
    fun forget() {
        prompt = null
        answer = emptyList()
        copies = HashMap()
    }

    /** Positions of a prompt that need not be read: all but one at most. */
    fun length(next: Prompt): Int {
        val known = prompt
        if (!reuse || known == null || decoder.layout !== known.layout) return 0
        val held = (known.ids.asList() + answer).take(decoder.position)
        val most = minOf(held.size, next.ids.size - 1)
        var length = (0 until most).firstOrNull { held[it] != next.ids[it] } ?: most
        val (ours, theirs) = known.pictureKeys to next.pictureKeys
        for ((number, span) in next.layout.spans.withIndex()) {
            if (number < ours.size && ours[number] != theirs[number]) {
                length = minOf(length, span.start)
                break
            }
        }
        length = unchanged(spec.positions, known.layout, next.layout, length)
        if (length == decoder.position || !spec.replaces) return length
        return copies.keys.filter { it <= length }.maxOrNull() ?: 0
    }

    /**
     * Logits after [next], of which [length] positions are held. [features]: of the views that lie behind. [answer]: the
     * list that the answer's tokens will be written to. Throws [Stopped]; what was read is held.
     */
    fun read(next: Prompt, length: Int, features: List<Rows>, answer: List<Int>, cancellation: Cancellation): FloatArray {
        val before = copies
        forget()
        val copied = before[length]
        if (length in 1 until decoder.position && copied != null) decoder.goBack(length, copied) else decoder.rewind(length)
        before.filterTo(copies) { it.key <= length }
        copy(length)
        val embeds = decoder.embed(next.ids.copyOfRange(length, next.ids.size))
        next.layout.behind(length).merge(embeds, features)
        val place = if (forks) behindPictures(next) else 0
        prompt = next
        val logits = if (place > length) {
            decoder.forward(embeds.part(0, place - length), next.layout, cancellation)
            copy(place)
            decoder.forward(embeds.part(place - length, embeds.count), null, cancellation)
        } else {
            decoder.forward(embeds, next.layout, cancellation)
        }
        this.answer = answer
        return logits
    }

    /** Where a later prompt may part from this one that asks about the same pictures; 0 where it cannot. */
    private fun behindPictures(next: Prompt): Int {
        val place = next.layout.spans.maxOfOrNull { it.end } ?: 0
        val whole = unchanged(spec.positions, next.layout, next.layout, place) == place
        return if (whole && place < next.ids.size) place else 0
    }

    private fun copy(place: Int) {
        if (!forks || place == 0 || place != decoder.position) return
        copies[place] = decoder.copied()
        while (copies.size > MOST_COPIES) copies.remove(copies.keys.sorted()[1]) // the first is behind the pictures
    }

    private companion object {
        const val MOST_COPIES = 8
    }
}

/** Rows from [start] to [stop]. */
public fun Rows.part(start: Int, stop: Int): Rows =
    if (start == 0 && stop == count) this else Rows(values.copyOfRange(start * width, stop * width), width)
