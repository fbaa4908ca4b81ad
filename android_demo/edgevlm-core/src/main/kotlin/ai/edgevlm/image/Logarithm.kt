package ai.edgevlm.image

/**
 * The double nearest to a natural logarithm.
 *
 * Which of two grids is nearer to a square picture's shape hangs on a logarithm's last bit, as with 3 x 2 and 2 x 3
 * tiles. Python's is nearest but for one in thousands; Java's is a bit off for one in fourteen, and differs from device
 * to device.
 */
internal object Logarithm {
    private const val TERMS = 24 // of the series: the first that is left out is below 2^-115

    fun of(x: Double): Double {
        var power = Math.getExponent(x)
        var part = Math.scalb(x, -power)
        if (part > 1.41421356) {
            part /= 2
            power++
        }
        // ln(part) = 2 atanh(s) with s = (part - 1) / (part + 1), at most 0.172; part - 1 is exact.
        val s = Pair(part - 1, 0.0) / sum(part, 1.0)
        val square = s * s
        var series = Pair(0.0, 0.0)
        for (n in TERMS downTo 0) series = series * square + Pair(1.0, 0.0) / Pair(2.0 * n + 1, 0.0)
        val found = s * series * Pair(2.0, 0.0) + Pair(power.toDouble(), 0.0) * LN_2
        return found.high
    }

    /** A number of twice the precision of a double: [high] is the nearest to it. */
    private class Pair(val high: Double, val low: Double) {
        operator fun plus(other: Pair): Pair {
            val high = sum(high, other.high)
            return quick(high.high, high.low + low + other.low)
        }

        operator fun times(other: Pair): Pair {
            val high = product(high, other.high)
            return quick(high.high, high.low + (this.high * other.low + low * other.high))
        }

        operator fun div(other: Pair): Pair {
            val first = high / other.high
            val left = this + Pair(-first, 0.0) * other
            return quick(first, (left.high + left.low) / other.high)
        }
    }

    private val LN_2: Pair = Pair(0.6931471805599453, 2.3190468138462996e-17)

    private fun quick(a: Double, b: Double): Pair = (a + b).let { Pair(it, b - (it - a)) }

    private fun sum(a: Double, b: Double): Pair {
        val sum = a + b
        val back = sum - a
        return Pair(sum, (a - (sum - back)) + (b - back))
    }

    private fun product(a: Double, b: Double): Pair {
        val product = a * b
        val (a1, a2) = halves(a)
        val (b1, b2) = halves(b)
        return Pair(product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2)
    }

    /** Halves of 26 bits, whose products are exact. */
    private fun halves(a: Double): DoubleArray {
        val scaled = 134217729.0 * a
        val high = scaled - (scaled - a)
        return doubleArrayOf(high, a - high)
    }
}
