package ai.edgevlm.layout

import ai.edgevlm.Limits
import ai.edgevlm.json.BadJson
import ai.edgevlm.json.Json

/**
 * Labels and numbers in an answer, one by one as they stand there. Scanners by hand: what `\d` and `\s` of a platform's
 * regular expressions match differs, and every one of these reads a text once.
 */
internal object Answers {
    fun read(text: String, grounding: Grounding): Sequence<Pair<String, List<Double>>> = when (grounding.form) {
        Grounding.Form.JSON -> json(text)
        Grounding.Form.TAGGED -> tagged(text, grounding)
        Grounding.Form.TOKENS -> tokens(text, grounding)
    }

    /** Without white space at both ends. */
    fun stripped(text: String): String = text.trim(::isSpace)

    /** What Python's `str.isspace` says, which no version of Unicode has changed for long. */
    fun isSpace(c: Char): Boolean = c in '\t'..'\r' || c in '\u001c'..' ' || c == '\u0085' || c == '\u00a0' ||
        c == '\u1680' || c in '\u2000'..'\u200a' || c == '\u2028' || c == '\u2029' || c == '\u202f' || c == '\u205f' ||
        c == '\u3000'

    /** The first [count] characters. */
    fun first(text: String, count: Int): String =
        if (text.codePointCount(0, text.length) <= count) text else text.substring(0, text.offsetByCodePoints(0, count))

    /** Objects one by one, so that a list which is cut off still gives those before its end. */
    private fun json(text: String): Sequence<Pair<String, List<Double>>> = sequence {
        var at = text.indexOf('{')
        var count = 0
        while (at >= 0 && count < Limits.BOXES) {
            val end = objectEnd(text, at)
            if (text[end - 1] == '}') {
                count++
                places(text.substring(at, end))
            }
            at = text.indexOf('{', end)
        }
    }

    /** Up to the brace that closes the object at [start], or to another outside of strings, or to the text's end. */
    private fun objectEnd(text: String, start: Int): Int {
        var at = start + 1
        while (at < text.length) {
            when (text[at]) {
                '{' -> return at
                '}' -> return at + 1
                '"' -> {
                    at++
                    while (at < text.length && text[at] != '"' && text[at] != '\n') {
                        if (text[at] != '\\') {
                            at++
                        } else if (at + 1 < text.length && text[at + 1] != '\n') {
                            at += if (Character.isHighSurrogate(text[at + 1]) && at + 2 < text.length) 3 else 2
                        } else {
                            break
                        }
                    }
                    if (at < text.length && text[at] == '"') at++
                }
                else -> at++
            }
        }
        return at
    }

    private suspend fun SequenceScope<Pair<String, List<Double>>>.places(found: String) {
        val value = try {
            Json.parse(found.toByteArray(), Limits.TEXT)
        } catch (_: BadJson) {
            return
        }
        val fields = value as? Map<*, *> ?: return
        val label = if ("label" in fields) fields["label"] else if ("category" in fields) fields["category"] else ""
        for ((keys, count) in listOf(listOf("bbox_2d", "box_2d", "bbox") to 4, listOf("point_2d", "point") to 2)) {
            val numbers = keys.firstOrNull { it in fields }?.let { fields[it] } as? List<*> ?: continue
            val good = numbers.all { it is Number && Math.abs(it.toDouble()) < 1e7 }
            if (numbers.size != count || !good) continue
            yield((label as? String ?: "") to numbers.map { (it as Number).toDouble() })
        }
    }

    /** A label counts for all boxes behind it up to the next words. */
    private fun tagged(text: String, grounding: Grounding): Sequence<Pair<String, List<Double>>> = sequence {
        var label = ""
        var at = 0 // where what stands before the next opening tag begins
        repeat(Limits.BOXES) { number ->
            val open = text.indexOf(grounding.open, at)
            if (open < 0) return@sequence
            val before = text.substring(at, open)
            val start = open + grounding.open.length
            // The last of as many parts reaches to the text's end.
            val next = if (number == Limits.BOXES - 1) -1 else text.indexOf(grounding.open, start)
            val part = text.substring(start, if (next < 0) text.length else next)
            if (grounding.labelOpen.isNotEmpty() && before.any { it !in " ,;\n" }) {
                val named = before.substringAfterLast(grounding.labelOpen)
                val end = named.indexOf(grounding.labelClose)
                val rest = if (end < 0) "" else named.substring(end + grounding.labelClose.length)
                label = if (end >= 0 && rest.all(::isSpace)) named.substring(0, end) else ""
            }
            val closed = part.indexOf(grounding.close)
            if (closed < 0) return@sequence
            val inside = part.substring(0, closed)
            for (group in lists(inside).ifEmpty { listOf(inside) }) {
                val (numbers, rest) = numbers(group)
                val alone = rest.all { isSpace(it) || it in "()[]," }
                if (alone && (numbers.size == 2 || numbers.size == 4)) yield(label to numbers)
            }
            at = start + closed + grounding.close.length
        }
    }

    /** Every `[...]` without brackets inside. */
    private fun lists(text: String): List<String> {
        val found = ArrayList<String>()
        var open = -1
        for (i in text.indices) {
            if (text[i] == '[') open = i
            if (text[i] == ']' && open >= 0) {
                found += text.substring(open, i + 1)
                open = -1
            }
        }
        return found
    }

    /** Numbers of up to seven digits, and nine behind the point, and what else there is. More is no place. */
    private fun numbers(text: String): Pair<List<Double>, String> {
        val code = text.codePoints().toArray()
        val found = ArrayList<Double>()
        val rest = StringBuilder()
        var at = 0
        while (at < code.size) {
            val end = if (at > 0 && (isDigit(code, at - 1) || code[at - 1] == '.'.code)) -1 else numberEnd(code, at)
            if (end < 0) {
                rest.appendCodePoint(code[at++])
            } else {
                val digits = StringBuilder()
                for (i in at until end) {
                    val digit = Character.digit(code[i], 10)
                    if (isDigit(code, i)) digits.append(digit) else digits.appendCodePoint(code[i])
                }
                found += digits.toString().toDouble()
                at = end
            }
        }
        return found to rest.toString()
    }

    private fun numberEnd(code: IntArray, start: Int): Int {
        var at = if (code[start] == '-'.code) start + 1 else start
        val whole = at
        while (isDigit(code, at)) at++
        if (at - whole !in 1..7) return -1
        if (at < code.size && code[at] == '.'.code) {
            val point = ++at
            while (isDigit(code, at)) at++
            if (at - point > 9 || (at < code.size && code[at] == '.'.code)) return -1
        }
        return at
    }

    private fun isDigit(code: IntArray, at: Int): Boolean = at in code.indices && Character.isDigit(code[at])

    /** A row of tokens is as many boxes as it has fours; a row of two is a point. */
    private fun tokens(text: String, grounding: Grounding): Sequence<Pair<String, List<Double>>> = sequence {
        val row = ArrayList<Double>()
        var token = token(text, 0, grounding)
        while (token != null) {
            row += token.number
            val next = token(text, token.end, grounding)
            val between = text.substring(token.end, next?.start ?: text.length)
            if (next == null || !between.all(::isSpace)) {
                val label = words(first(between, Limits.LABEL * 16)).takeWhile { it != ';' && it != '<' && it != '\n' }
                val size = if (row.size == 2) 2 else 4
                for (start in 0..row.size - size step size) yield(label to row.subList(start, start + size).toList())
                row.clear()
            }
            token = next
        }
    }

    private class Token(val start: Int, val end: Int, val number: Double)

    private fun token(text: String, from: Int, grounding: Grounding): Token? {
        var start = text.indexOf(grounding.open, from)
        while (start >= 0) {
            val first = start + grounding.open.length
            val ends = IntArray(8) // where each number of digits ends
            ends[0] = first
            var value = 0
            val values = IntArray(8)
            var count = 0
            while (count < 7 && ends[count] < text.length) {
                val code = text.codePointAt(ends[count])
                if (!Character.isDigit(code)) break
                value = value * 10 + Character.digit(code, 10)
                ends[count + 1] = ends[count] + Character.charCount(code)
                values[++count] = value
            }
            for (digits in count downTo 1) {
                if (text.startsWith(grounding.close, ends[digits])) {
                    return Token(start, ends[digits] + grounding.close.length, values[digits].toDouble())
                }
            }
            start = text.indexOf(grounding.open, start + 1)
        }
        return null
    }

    /** What is behind white space and other tokens at the beginning. */
    private fun words(text: String): String {
        var at = 0
        while (true) {
            var next = at
            while (next < text.length && isSpace(text[next])) next++
            val end = tagEnd(text, next)
            if (end < 0) return text.substring(next)
            at = end
        }
    }

    /** Where a tag of up to 40 characters ends that begins at [start]; -1: none does. */
    private fun tagEnd(text: String, start: Int): Int {
        if (start >= text.length || text[start] != '<') return -1
        var at = start + 1
        var count = 0
        while (at < text.length && text[at] != '<' && text[at] != '>' && !isSpace(text[at])) {
            at += Character.charCount(text.codePointAt(at))
            count++
        }
        return if (count in 1..40 && at < text.length && text[at] == '>') at + 1 else -1
    }
}
