package ai.edgevlm.text

/**
 * What the `tokenizers` library knows of characters, out of a table that tools/make_unicode.py writes.
 *
 * The platform's own classes are not used anywhere: they differ by thousands of code points and change with the system.
 */
internal object Unicode {
    /** Names of categories by their number in a [value]. */
    val CATEGORIES: List<String> = (
        "Cn Cc Cf Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs"
        ).split(" ")
    const val CATEGORY = 31
    const val SPACE = 32
    const val NUMERIC = 64
    const val BLANK = 128
    const val WORD = 256
    const val STRIP = 512

    private const val PAGE = 8
    private const val PAGES = 0x110000 shr PAGE
    private val pages = arrayOfNulls<ShortArray>(PAGES)

    /** Full canonical decompositions, but of Hangul's syllables. */
    val decomposed: Map<Int, IntArray>

    /** Combining classes in their order, of marks that move. */
    val classes: Map<Int, Int>

    /** The composed character of a pair, `first shl 21 or second`. */
    val composed: Map<Long, Int>

    init {
        val stream = checkNotNull(Unicode::class.java.getResourceAsStream("unicode.bin")) { "unicode.bin is missing" }
        val numbers = Numbers(stream.use { it.readBytes() })
        readRanges(numbers)
        decomposed = HashMap<Int, IntArray>().also { found ->
            var code = 0
            repeat(numbers.next()) {
                code += numbers.next()
                found[code] = IntArray(numbers.next()) { numbers.next() }
            }
        }
        classes = HashMap<Int, Int>().also { found ->
            var code = 0
            repeat(numbers.next()) {
                code += numbers.next()
                found[code] = numbers.next()
            }
        }
        composed = HashMap<Long, Int>().also { found ->
            repeat(numbers.next()) { found[pair(numbers.next(), numbers.next())] = numbers.next() }
        }
    }

    fun pair(first: Int, second: Int): Long = (first.toLong() shl 21) or second.toLong()

    /** Category and flags of a code point. */
    fun value(code: Int): Int = pages[code shr PAGE]!![code and ((1 shl PAGE) - 1)].toInt()

    fun has(code: Int, flag: Int): Boolean = value(code) and flag != 0

    private fun readRanges(numbers: Numbers) {
        val same = HashMap<Short, ShortArray>() // pages of one value are one
        val page = ShortArray(1 shl PAGE)
        var code = 0
        repeat(numbers.next()) {
            val end = code + numbers.next()
            val value = numbers.next().toShort()
            while (code < end) {
                page[code and ((1 shl PAGE) - 1)] = value
                code++
                if (code and ((1 shl PAGE) - 1) == 0) {
                    val made = if (page.all { it == value }) same.getOrPut(value) { page.clone() } else page.clone()
                    pages[(code shr PAGE) - 1] = made
                }
            }
        }
        check(code == 0x110000) { "unicode.bin is cut" }
    }

    private class Numbers(private val data: ByteArray) {
        private var at = 0

        fun next(): Int {
            var found = 0
            var shift = 0
            while (true) {
                val byte = data[at++].toInt()
                found = found or ((byte and 127) shl shift)
                if (byte >= 0) return found
                shift += 7
            }
        }
    }
}

/** Text without the white space that Python's `str.lstrip` takes away. */
internal fun String.stripStart(): String {
    var at = 0
    while (at < length && Unicode.has(codePointAt(at), Unicode.STRIP)) at += Character.charCount(codePointAt(at))
    return substring(at)
}

/** As `str.rstrip`. */
internal fun String.stripEnd(): String {
    var end = length
    while (end > 0 && Unicode.has(codePointBefore(end), Unicode.STRIP)) end -= Character.charCount(codePointBefore(end))
    return substring(0, end)
}

/** The code points of a text; half of a surrogate pair stays by itself. */
internal fun String.codePointArray(): IntArray {
    val found = IntArray(codePointCount(0, length))
    var at = 0
    for (i in found.indices) {
        found[i] = codePointAt(at)
        at += Character.charCount(found[i])
    }
    return found
}

internal fun textOf(codes: IntArray, start: Int = 0, end: Int = codes.size): String = String(codes, start, end - start)

/** Whether a text holds half of a surrogate pair, which is no character. */
internal fun String.isBroken(): Boolean {
    var at = 0
    while (at < length) {
        val code = codePointAt(at)
        if (code in 0xD800..0xDFFF) return true
        at += Character.charCount(code)
    }
    return false
}
