package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException

/** The filters of `docs/preprocessing.md`, section 2; [id] is what `preprocess.json` calls each. */
public enum class Resample(public val id: String) {
    BILINEAR("bilinear"),
    BICUBIC("bicubic"),
    LANCZOS("lanczos"),

    /** Torch's bicubic, which reads four pixels per axis however much a picture shrinks. */
    BICUBIC_PLAIN("bicubic_plain"),
    ;

    /** [picture] scaled to [width] x [height], bit for bit as Python does. */
    public fun resize(picture: RgbImage, width: Int, height: Int): RgbImage {
        if (width < 1 || height < 1 || width.toLong() * height > RgbImage.MAX_PIXELS) throw tooLarge(width, height)
        if (this == BICUBIC_PLAIN) return plain(picture, width, height)
        val high = picture.height - height
        val columnsFirst = high > 0 && high > 2L * (picture.width - width)
        return if (columnsFirst) rows(columns(picture, height), width) else columns(rows(picture, width), height)
    }

    private fun tooLarge(width: Int, height: Int) = EdgeVLMException.ImageError(
        "A picture would become $width x $height pixels, expected 1 to ${RgbImage.MAX_PIXELS} of them: cut it into " +
            "less elongated pieces first.",
    )

    /** How far the kernel reaches, in pixels of a picture that is enlarged. */
    internal val support: Double
        get() = if (this == BILINEAR) 1.0 else if (this == BICUBIC) 2.0 else 3.0

    internal fun kernel(at: Double): Double {
        val x = Math.abs(at)
        return when (this) {
            BILINEAR -> if (x < 1.0) 1.0 - x else 0.0
            BICUBIC -> when {
                x < 1.0 -> ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
                x < 2.0 -> (((x - 5) * x + 8) * x - 4) * -0.5
                else -> 0.0
            }
            else -> if (-3.0 <= at && at < 3.0) sinc(at) * sinc(at / 3) else 0.0
        }
    }

    private fun sinc(x: Double): Double {
        if (x == 0.0) return 1.0
        val angle = x * Math.PI
        return StrictMath.sin(angle) / angle
    }

    /** Every row scaled to [width]. */
    private fun rows(picture: RgbImage, width: Int): RgbImage {
        if (width == picture.width) return picture
        val taps = Taps(this, picture.width, width)
        val wide = picture.width * 3
        val pair = LongArray(wide)
        val out = ByteArray(width * picture.height * 3)
        for (y in 0 until picture.height step 2) { // two rows at a time, in the halves of one number
            val one = y * wide
            val two = minOf(y + 1, picture.height - 1) * wide
            for (i in 0 until wide) {
                pair[i] = (picture.bytes[one + i].toLong() and 255) or (picture.bytes[two + i].toLong() and 255 shl 32)
            }
            taps.lines(pair, out, y * width * 3, minOf(y + 1, picture.height - 1) * width * 3)
        }
        return RgbImage(width, picture.height, out)
    }

    /** Every column scaled to [height]. */
    private fun columns(picture: RgbImage, height: Int): RgbImage {
        if (height == picture.height) return picture
        val taps = Taps(this, picture.height, height)
        val wide = picture.width * 3
        val out = ByteArray(wide * height)
        val block = minOf(wide, BLOCK)
        val sums = IntArray(block)
        // A block of columns at a time: its rows of numbers stay in the cache while several outputs read each.
        val rows = minOf(taps.longest, picture.height)
        val kept = IntArray(rows * block)
        for (left in 0 until wide step block) {
            val count = minOf(block, wide - left)
            var read = 0 // rows of the block so far
            for (y in 0 until height) {
                val first = taps.first[y]
                val end = first + taps.count(y)
                read = maxOf(read, first)
                while (read < end) {
                    unpack(picture.bytes, read * wide + left, kept, read % rows * block, count)
                    read++
                }
                java.util.Arrays.fill(sums, HALF)
                var weight = taps.start[y]
                var i = first
                while (i < end) { // two rows at a time, as every turn reads and writes the sums
                    val other = if (i + 1 < end) taps.weights[weight + 1] else 0
                    add(sums, kept, i % rows * block, taps.weights[weight], (i + 1) % rows * block, other, count)
                    weight += 2
                    i += 2
                }
                for (x in 0 until count) out[y * wide + left + x] = clipped(sums[x])
            }
        }
        return RgbImage(picture.width, height, out)
    }
}

/** Of each output along one axis: the first input and the integer weights from there on. */
internal class Taps(filter: Resample, from: Int, to: Int) {
    val first = IntArray(to)
    val start = IntArray(to + 1) // where an output's weights begin
    val weights: IntArray
    val longest: Int

    init {
        val scale = from / to.toDouble()
        val stretch = maxOf(scale, 1.0)
        val support = filter.support * stretch
        val inverse = 1.0 / stretch
        longest = minOf((2 * support + 2).toInt(), from)
        if (longest.toLong() * to > MOST) {
            throw EdgeVLMException.ImageError(
                "A picture's edge of $from pixels would become $to: cut it into less elongated pieces first.",
            )
        }
        val room = IntArray(longest * to)
        val exact = DoubleArray(longest)
        for (x in 0 until to) {
            val center = (x + 0.5) * scale
            val low = maxOf((center - support + 0.5).toInt(), 0)
            val high = minOf((center + support + 0.5).toInt(), from)
            var total = 0.0
            for (i in 0 until high - low) {
                exact[i] = filter.kernel((i + low - center + 0.5) * inverse)
                total += exact[i]
            }
            first[x] = low
            for (i in 0 until high - low) {
                val weight = if (total != 0.0) exact[i] / total else exact[i]
                room[start[x] + i] = (weight * ONE + if (weight < 0) -0.5 else 0.5).toInt()
            }
            start[x + 1] = start[x] + maxOf(high - low, 0)
        }
        weights = room.copyOf(start[to])
    }

    fun count(x: Int): Int = start[x + 1] - start[x]

    /**
     * Two rows of pixels to [out], from [one] and from [two] on.
     *
     * Each number of [pair] is of the first row, and 2^32 times that of the second: so is each sum, and half as many
     * products make them. A sum of one row fits 32 bits with its sign.
     */
    fun lines(pair: LongArray, out: ByteArray, one: Int, two: Int) {
        var to = 0
        for (x in first.indices) {
            var red = HALVES
            var green = HALVES
            var blue = HALVES
            var at = first[x] * 3
            for (i in start[x] until start[x + 1]) {
                val weight = weights[i].toLong()
                red += weight * pair[at]
                green += weight * pair[at + 1]
                blue += weight * pair[at + 2]
                at += 3
            }
            put(red, out, one + to, two + to)
            put(green, out, one + to + 1, two + to + 1)
            put(blue, out, one + to + 2, two + to + 2)
            to += 3
        }
    }

    private fun put(sums: Long, out: ByteArray, one: Int, two: Int) {
        val low = sums.toInt()
        out[one] = clipped(low)
        out[two] = clipped((sums - low shr 32).toInt())
    }

    private companion object {
        const val MOST = 1 shl 24 // weights along one axis: an edge of 65,535 pixels has some 500,000
    }
}

private const val BITS = 22
private const val ONE = (1 shl BITS).toDouble()
private const val HALF = 1 shl (BITS - 1)
private const val HALVES = (HALF.toLong() shl 32) + HALF
private const val BLOCK = 384 // numbers: 128 pixels

private fun clipped(sum: Int): Byte {
    val value = sum shr BITS
    return (if (value and 255 == value) value else if (value < 0) 0 else 255).toByte()
}

private fun unpack(bytes: ByteArray, start: Int, out: IntArray, to: Int, count: Int) {
    for (i in 0 until count) out[to + i] = bytes[start + i].toInt() and 255
}

private fun add(sums: IntArray, kept: IntArray, one: Int, weight: Int, two: Int, other: Int, count: Int) {
    for (i in 0 until count) sums[i] += weight * kept[one + i] + other * kept[two + i]
}

/** Both passes in double, rounded to even and clipped once, at the end. */
private fun plain(picture: RgbImage, width: Int, height: Int): RgbImage {
    if (width == picture.width && height == picture.height) return picture
    val down = PlainTaps(picture.height, height)
    val across = PlainTaps(picture.width, width)
    val wide = picture.width * 3
    val mixed = DoubleArray(wide)
    val out = ByteArray(width * height * 3)
    var to = 0
    for (y in 0 until height) {
        java.util.Arrays.fill(mixed, 0.0)
        for (step in 0 until 4) {
            val row = down.at[4 * y + step] * wide
            val weight = down.weights[4 * y + step]
            for (i in 0 until wide) mixed[i] += (picture.bytes[row + i].toInt() and 255) * weight
        }
        for (x in 0 until width) {
            for (c in 0 until 3) {
                var sum = 0.0
                for (step in 4 * x until 4 * x + 4) sum += mixed[across.at[step] * 3 + c] * across.weights[step]
                out[to++] = minOf(maxOf(Math.rint(sum), 0.0), 255.0).toInt().toByte()
            }
        }
    }
    return RgbImage(width, height, out)
}

/** Four inputs and weights for each output, by the kernel of Keys (1981) with a = -0.75. */
private class PlainTaps(from: Int, to: Int) {
    val at = IntArray(4 * to)
    val weights = DoubleArray(4 * to)

    init {
        val scale = from / to.toDouble()
        for (x in 0 until to) {
            val exact = (x + 0.5) * scale - 0.5
            val low = Math.floor(exact)
            for (step in -1..2) {
                at[4 * x + step + 1] = minOf(maxOf(low + step, 0.0), from - 1.0).toInt()
                weights[4 * x + step + 1] = keys(Math.abs(exact - low - step))
            }
        }
    }

    private fun keys(x: Double): Double =
        if (x <= 1.0) ((-0.75 + 2.0) * x - (-0.75 + 3.0)) * x * x + 1 else (((x - 5) * x + 8) * x - 4) * -0.75
}
