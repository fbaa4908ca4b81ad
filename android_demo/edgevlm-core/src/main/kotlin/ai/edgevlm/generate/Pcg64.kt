package ai.edgevlm.generate

import java.math.BigInteger

/** numpy's `default_rng(seed).random()`: PCG XSL RR 128/64 (O'Neill 2014), seeded by numpy's SeedSequence. */
internal class Pcg64(seed: Long) {
    private val increment: BigInteger
    private var state: BigInteger

    init {
        val words = SeedSequence(seed).words()
        increment = (wide(words[2], words[3]).shl(1).or(BigInteger.ONE)).and(MASK)
        state = step(BigInteger.ZERO)
        state = step(state.add(wide(words[0], words[1])))
    }

    /** From 0 up to 1, in steps of 2^-53. */
    fun next(): Double {
        state = step(state)
        val high = state.shiftRight(64).toLong()
        return (java.lang.Long.rotateRight(high xor state.toLong(), (high ushr 58).toInt()) ushr 11) * (1.0 / (1L shl 53))
    }

    private fun step(from: BigInteger): BigInteger = from.multiply(FACTOR).add(increment).and(MASK)

    private companion object {
        val MASK: BigInteger = BigInteger.ONE.shiftLeft(128).subtract(BigInteger.ONE)
        val FACTOR = BigInteger("2360ed051fc65da44385df649fccf645", 16)

        fun BigInteger.shl(bits: Int): BigInteger = shiftLeft(bits)

        fun wide(high: Long, low: Long): BigInteger =
            BigInteger(java.lang.Long.toUnsignedString(high)).shiftLeft(64).add(BigInteger(java.lang.Long.toUnsignedString(low)))
    }
}

/** How numpy makes a generator's first state of a number; arithmetic of 32 bits without sign. */
private class SeedSequence(seed: Long) {
    private val pool = IntArray(4)
    private var factor = 0x43b0d7e5

    init {
        val entropy = intArrayOf(seed.toInt(), (seed ushr 32).toInt())
        for (i in 0 until 4) pool[i] = hashed(if (i < 2) entropy[i] else 0)
        for (from in 0 until 4) {
            for (to in 0 until 4) if (from != to) pool[to] = mixed(pool[to], hashed(pool[from]))
        }
    }

    fun words(): LongArray {
        var factor = 0x8b51f9dd.toInt()
        val halves = IntArray(8) { i ->
            var value = pool[i % 4] xor factor
            factor *= 0x58f38ded
            value *= factor
            value xor (value ushr 16)
        }
        return LongArray(4) { (halves[2 * it].toLong() and 0xffffffffL) or (halves[2 * it + 1].toLong() shl 32) }
    }

    private fun hashed(word: Int): Int {
        var value = word xor factor
        factor *= 0x931e8875.toInt()
        value *= factor
        return value xor (value ushr 16)
    }

    private fun mixed(x: Int, y: Int): Int {
        val value = 0xca01f9dd.toInt() * x - 0x4973f715 * y
        return value xor (value ushr 16)
    }
}
