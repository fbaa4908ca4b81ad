package ai.edgevlm.text

import java.util.Arrays

/** Canonical composition (Unicode Standard Annex 15), with the library's own tables. */
internal object Nfc {
    private const val FIRST_AFFECTED = 0x300 // no code point before it changes, or changes another
    private const val SYLLABLES = 0xAC00
    private const val LEADS = 0x1100
    private const val VOWELS = 0x1161
    private const val TAILS = 0x11A7 // one before the first
    private const val LEAD_COUNT = 19
    private const val VOWEL_COUNT = 21
    private const val TAIL_COUNT = 28
    private const val BLOCK = VOWEL_COUNT * TAIL_COUNT

    fun of(codes: IntArray): IntArray {
        if (codes.all { it < FIRST_AFFECTED }) return codes
        return compose(ordered(decompose(codes)))
    }

    private fun decompose(codes: IntArray): IntArray {
        val out = Ints(codes.size + 16)
        for (code in codes) {
            val syllable = code - SYLLABLES
            if (syllable in 0 until LEAD_COUNT * BLOCK) {
                out.add(LEADS + syllable / BLOCK)
                out.add(VOWELS + syllable % BLOCK / TAIL_COUNT)
                if (syllable % TAIL_COUNT != 0) out.add(TAILS + syllable % TAIL_COUNT)
                continue
            }
            val parts = if (code < 0xC0) null else Unicode.decomposed[code]
            if (parts == null) out.add(code) else for (part in parts) out.add(part)
        }
        return out.toArray()
    }

    /** Each run of marks by class; those of one class stay in their order. */
    private fun ordered(codes: IntArray): IntArray {
        var at = 0
        while (at < codes.size) {
            if (rank(codes[at]) == 0) {
                at++
                continue
            }
            val start = at
            while (at < codes.size && rank(codes[at]) != 0) at++
            if (at - start == 1) continue
            val keys = LongArray(at - start) { (rank(codes[start + it]).toLong() shl 32) or it.toLong() }
            Arrays.sort(keys)
            val run = codes.copyOfRange(start, at)
            for (i in keys.indices) codes[start + i] = run[keys[i].toInt()]
        }
        return codes
    }

    private fun compose(codes: IntArray): IntArray {
        val out = Ints(codes.size)
        var starter = -1 // place in `out`
        var before = 0 // class of what stands between it and this one; 0: nothing does
        for (code in codes) {
            val rank = rank(code)
            if (starter >= 0 && (before < rank || (before == 0 && out.size == starter + 1))) {
                val made = pair(out[starter], code)
                if (made >= 0) {
                    out[starter] = made
                    continue
                }
            }
            if (rank == 0) starter = out.size
            before = rank
            out.add(code)
        }
        return out.toArray()
    }

    private fun pair(first: Int, second: Int): Int {
        val lead = first - LEADS
        val vowel = second - VOWELS
        if (lead in 0 until LEAD_COUNT && vowel in 0 until VOWEL_COUNT) {
            return SYLLABLES + (lead * VOWEL_COUNT + vowel) * TAIL_COUNT
        }
        val syllable = first - SYLLABLES
        val tail = second - TAILS
        if (syllable in 0 until LEAD_COUNT * BLOCK && syllable % TAIL_COUNT == 0 && tail in 1 until TAIL_COUNT) {
            return first + tail
        }
        return Unicode.composed[Unicode.pair(first, second)] ?: -1
    }

    private fun rank(code: Int): Int = if (code < FIRST_AFFECTED) 0 else Unicode.classes[code] ?: 0
}

/** A list of Int without boxes. */
internal class Ints(capacity: Int = 16) {
    private var values = IntArray(maxOf(4, capacity))
    var size: Int = 0
        private set

    operator fun get(index: Int): Int = values[index]

    operator fun set(index: Int, value: Int) {
        values[index] = value
    }

    fun add(value: Int) {
        if (size == values.size) values = values.copyOf(size * 2)
        values[size++] = value
    }

    fun addAll(other: IntArray, start: Int = 0, end: Int = other.size) {
        val more = end - start
        if (size + more > values.size) values = values.copyOf(maxOf(values.size * 2, size + more))
        System.arraycopy(other, start, values, size, more)
        size += more
    }

    fun clear() {
        size = 0
    }

    fun toArray(): IntArray = values.copyOf(size)
}
