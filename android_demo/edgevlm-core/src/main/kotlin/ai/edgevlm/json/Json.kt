package ai.edgevlm.json

import ai.edgevlm.Limits
import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/** What a text that is no JSON, or beyond the limits, is refused with; the message says in a few words what is wrong. */
internal class BadJson(message: String) : Exception(message)

/**
 * JSON within bounds, by the rules of Python's `edgevlm.io.json.parse_json`: no duplicate keys, no deep nesting, no
 * numbers beyond Double, no NaN, no half of a surrogate pair, no byte order mark.
 */
internal object Json {
    /**
     * The value of [data]: a LinkedHashMap, an ArrayList, String, Long (BigInteger beyond it), Double, Boolean or null.
     *
     * [largest]: bytes. Throws [BadJson].
     */
    fun parse(data: ByteArray, largest: Int): Any? {
        if (data.size > largest) throw BadJson("it has over $largest bytes")
        val containers = data.count { it == '{'.code.toByte() || it == '['.code.toByte() }
        if (containers > largest / Limits.JSON_BYTES_PER_CONTAINER) throw BadJson("it holds too many objects and lists")
        if (data.size >= 3 && data[0] == 0xEF.toByte() && data[1] == 0xBB.toByte() && data[2] == 0xBF.toByte()) {
            throw BadJson("it begins with a byte order mark, which JSON has not")
        }
        val text = try {
            Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString() // a new decoder reports what is wrong
        } catch (_: CharacterCodingException) {
            throw BadJson("it is not UTF-8 text")
        }
        return Parser(text).document()
    }
}

private class Parser(private val text: String) {
    private var at = 0
    private var depth = 0

    fun document(): Any? {
        val value = value()
        space()
        if (at != text.length) throw wrong("more after its end")
        return value
    }

    private fun value(): Any? {
        space()
        return when (peek()) {
            '{' -> nested { obj() }
            '[' -> nested { list() }
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private inline fun <T> nested(read: () -> T): T {
        if (++depth > Limits.JSON_DEPTH) {
            throw BadJson("objects and lists are nested more than ${Limits.JSON_DEPTH} deep")
        }
        at++
        return read().also { depth-- }
    }

    private fun obj(): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        space()
        if (take('}')) return found
        while (true) {
            space()
            if (peek() != '"') throw wrong("no key")
            val key = string()
            space()
            if (!take(':')) throw wrong("no ':' behind a key")
            val value = value()
            val before = found.size
            found[key] = value
            if (found.size == before) throw BadJson("the key '${key.take(80)}' occurs twice in one object")
            space()
            if (take('}')) return found
            if (!take(',')) throw wrong("neither ',' nor '}'")
        }
    }

    private fun list(): List<Any?> {
        val found = ArrayList<Any?>()
        space()
        if (take(']')) return found
        while (true) {
            found.add(value())
            space()
            if (take(']')) return found
            if (!take(',')) throw wrong("neither ',' nor ']'")
        }
    }

    private fun string(): String {
        val start = ++at
        while (at < text.length) {
            val c = text[at]
            if (c == '"') return text.substring(start, at++)
            if (c == '\\') return escaped(start)
            if (c < ' ') throw wrong("a control character in a text")
            at++
        }
        throw wrong("a text without an end")
    }

    private fun escaped(start: Int): String {
        val built = StringBuilder(text.substring(start, at))
        var halves = false
        while (at < text.length) {
            val c = text[at++]
            when {
                c == '"' -> return built.toString().also { if (halves) checkPairs(it) }
                c == '\\' -> {
                    val char = escape()
                    if (char.isSurrogate()) halves = true
                    built.append(char)
                }
                c < ' ' -> throw wrong("a control character in a text")
                else -> built.append(c)
            }
        }
        throw wrong("a text without an end")
    }

    private fun escape(): Char {
        val c = peek()
        at++
        return when (c) {
            '"', '\\', '/' -> c
            'b' -> '\b'
            'f' -> '\u000C'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                if (at + 4 > text.length) throw wrong("a cut escape")
                var code = 0
                repeat(4) {
                    val digit = hex(text[at++])
                    if (digit < 0) throw wrong("an escape without four hexadecimal digits")
                    code = code * 16 + digit
                }
                code.toChar()
            }
            else -> throw wrong("an escape that JSON has not")
        }
    }

    private fun hex(c: Char): Int = when (c) {
        in '0'..'9' -> c - '0'
        in 'a'..'f' -> c - 'a' + 10
        in 'A'..'F' -> c - 'A' + 10
        else -> -1
    }

    private fun checkPairs(value: String) {
        var i = 0
        while (i < value.length) {
            val c = value[i++]
            if (!c.isSurrogate()) continue
            if (c.isLowSurrogate() || i == value.length || !value[i].isLowSurrogate()) {
                throw BadJson("it holds half of a surrogate pair, which is no character")
            }
            i++
        }
    }

    private fun number(): Any {
        val start = at
        if (peek() == '-') at++
        val digits = at
        if (!digit()) throw wrong("neither a value nor a number")
        if (text[at++] != '0') while (digit()) at++
        val whole = at
        if (at + 1 < text.length && text[at] == '.' && text[at + 1] in '0'..'9') {
            at++
            while (digit()) at++
        }
        if (at < text.length && (text[at] == 'e' || text[at] == 'E')) {
            val sign = if (at + 1 < text.length && (text[at + 1] == '+' || text[at + 1] == '-')) 2 else 1
            if (at + sign < text.length && text[at + sign] in '0'..'9') {
                at += sign
                while (digit()) at++
            }
        }
        val written = text.substring(start, at)
        if (at != whole) {
            val value = written.toDouble()
            if (value.isInfinite()) throw BadJson("the number ${written.take(40)} is larger than any")
            return value
        }
        if (whole - digits > Limits.DIGITS) throw BadJson("a number has over ${Limits.DIGITS} digits")
        return written.toLongOrNull() ?: BigInteger(written)
    }

    private fun digit() = at < text.length && text[at] in '0'..'9'

    private fun word(word: String, value: Any?): Any? {
        if (!text.startsWith(word, at)) throw wrong("a word that JSON has not")
        at += word.length
        return value
    }

    private fun space() {
        while (at < text.length && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t' || text[at] == '\r')) at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else throw wrong("its end too early")

    private fun take(c: Char): Boolean = (at < text.length && text[at] == c).also { if (it) at++ }

    private fun wrong(what: String) = BadJson("at character $at there is $what")
}
