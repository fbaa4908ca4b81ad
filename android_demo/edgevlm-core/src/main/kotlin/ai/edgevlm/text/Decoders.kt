package ai.edgevlm.text

/** One step from tokens to text. */
internal fun interface Decoder {
    fun decode(tokens: List<String>): List<String>
}

internal object ByteLevelDecoder : Decoder {
    override fun decode(tokens: List<String>): List<String> {
        val bytes = Bytes(tokens.size * 4)
        for (token in tokens) {
            val codes = token.codePointArray()
            if (codes.all { ByteLetters.byte(it) >= 0 }) {
                for (code in codes) bytes.add(ByteLetters.byte(code))
            } else {
                for (code in codes) utf8(code) { bytes.add(it) }
            }
        }
        return listOf(bytes.text())
    }
}

internal class ReplaceDecoder(private val pattern: String, private val content: String) : Decoder {
    override fun decode(tokens: List<String>): List<String> = tokens.map { it.replace(pattern, content) }
}

internal object FuseDecoder : Decoder {
    override fun decode(tokens: List<String>): List<String> = listOf(tokens.joinToString(""))
}

/** Takes at most [most] of a character from the beginning of each token. */
internal class StripDecoder(private val content: Char, private val most: Int) : Decoder {
    override fun decode(tokens: List<String>): List<String> = tokens.map { token ->
        var at = 0
        while (at < most && at < token.length && token[at] == content) at++
        token.substring(at)
    }
}

internal class MetaspaceDecoder(private val mark: Int, private val prepends: Boolean) : Decoder {
    override fun decode(tokens: List<String>): List<String> = tokens.mapIndexed { number, token ->
        val text = StringBuilder()
        for (code in token.codePointArray()) {
            if (code != mark) text.appendCodePoint(code) else if (number > 0 || !prepends) text.append(' ')
        }
        text.toString()
    }
}

/** SentencePiece's `<0xNN>`: a run of them is a text where it is UTF-8, and otherwise U+FFFD for each. */
internal object ByteFallbackDecoder : Decoder {
    override fun decode(tokens: List<String>): List<String> {
        val out = ArrayList<String>(tokens.size)
        val run = Bytes(16)
        for (token in tokens) {
            val byte = byteOf(token)
            if (byte >= 0) {
                run.add(byte)
                continue
            }
            flush(run, out)
            out += token
        }
        flush(run, out)
        return out
    }

    private fun flush(run: Bytes, out: MutableList<String>) {
        if (run.size == 0) return
        if (run.isValid()) out += run.text() else repeat(run.size) { out += "\uFFFD" }
        run.clear()
    }

    /** The byte that a token spells, -1 where it is another token. */
    fun byteOf(token: String): Int {
        if (token.length != 6 || !token.startsWith("<0x") || token[5] != '>') return -1
        val high = hex(token[3])
        val low = hex(token[4])
        if (token[3] == '+') return low // the library's own number parser takes a sign
        return if (high < 0 || low < 0) -1 else high * 16 + low
    }

    private fun hex(char: Char): Int = when (char) {
        in '0'..'9' -> char - '0'
        in 'a'..'f' -> char - 'a' + 10
        in 'A'..'F' -> char - 'A' + 10
        else -> -1
    }
}

/** Bytes that should be UTF-8. */
internal class Bytes(capacity: Int) {
    private var values = ByteArray(maxOf(4, capacity))
    var size = 0
        private set

    fun add(byte: Int) {
        if (size == values.size) values = values.copyOf(size * 2)
        values[size++] = byte.toByte()
    }

    fun clear() {
        size = 0
    }

    fun isValid(): Boolean {
        var good = true
        read({}, { good = false })
        return good
    }

    /** The text, with U+FFFD for each longest beginning of a character that does not go on: Unicode's own advice. */
    fun text(): String {
        val out = StringBuilder(size)
        read({ out.appendCodePoint(it) }, { out.append('\uFFFD') })
        return out.toString()
    }

    private inline fun read(good: (Int) -> Unit, bad: () -> Unit) {
        var at = 0
        while (at < size) {
            val first = values[at++].toInt() and 255
            if (first < 0x80) {
                good(first)
                continue
            }
            val more = when (first) {
                in 0xC2..0xDF -> 1
                in 0xE0..0xEF -> 2
                in 0xF0..0xF4 -> 3
                else -> 0
            }
            var code = first and (0x3F shr more)
            var left = more
            while (left > 0 && at < size) {
                val byte = values[at].toInt() and 255
                val low = if (left < more) 0x80 else lowest(first)
                val high = if (left < more) 0xBF else highest(first)
                if (byte < low || byte > high) break
                code = (code shl 6) or (byte and 0x3F)
                at++
                left--
            }
            if (more == 0 || left > 0) bad() else good(code)
        }
    }

    private fun lowest(first: Int): Int = if (first == 0xE0) 0xA0 else if (first == 0xF0) 0x90 else 0x80

    private fun highest(first: Int): Int = if (first == 0xED) 0x9F else if (first == 0xF4) 0x8F else 0xBF
}
