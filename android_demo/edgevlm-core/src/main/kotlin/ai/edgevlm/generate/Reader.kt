package ai.edgevlm.generate

import ai.edgevlm.layout.Answers
import ai.edgevlm.text.TextStream

/**
 * Tokens to pieces of text, without white space before the first word. [stopped] says that a stop string came; it is no
 * part of the text, nor is what follows.
 *
 * Of several stop strings the one that is complete first counts, and of those that end at one place the longest. What
 * may be the beginning of one is held back until it is known.
 */
internal class Reader(private val stream: TextStream, private val stop: List<String>) {
    private var begun = false
    private var held = ""
    var stopped = false
        private set

    /** The text that is known to belong to the answer now; often empty. */
    fun push(token: Int): String = add(stream.push(token))

    /** The rest. */
    fun finish(): String {
        if (stopped) return ""
        val piece = add(stream.finish())
        return piece + if (stopped) "" else held
    }

    private fun add(fresh: String): String {
        val piece = if (begun) fresh else fresh.trimStart(Answers::isSpace)
        begun = begun || piece.isNotEmpty()
        val text = held + piece
        val found = stop.filter { it in text }.map { text.indexOf(it) + it.length to text.indexOf(it) }
        if (found.isNotEmpty()) {
            stopped = true
            return text.substring(0, found.minWithOrNull(compareBy({ it.first }, { it.second }))!!.second)
        }
        val keep = stop.maxOfOrNull { overlap(text, it) } ?: 0
        held = text.substring(text.length - keep)
        return text.substring(0, text.length - keep)
    }

    /** How many characters at the end of [text] may be the beginning of [stop]. */
    private fun overlap(text: String, stop: String): Int =
        (minOf(text.length, stop.length - 1) downTo 1).firstOrNull { text.endsWith(stop.substring(0, it)) } ?: 0
}
