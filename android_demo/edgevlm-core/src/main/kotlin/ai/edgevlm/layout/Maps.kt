package ai.edgevlm.layout

import ai.edgevlm.EdgeVLMException
import java.math.BigDecimal
import java.math.RoundingMode

/** Features of rows x columns places, of [width] numbers each. */
internal class FloatMap(
    private val rows: Int,
    private val columns: Int,
    val width: Int,
    val values: FloatArray = FloatArray(rows * columns * width),
) {
    init {
        require(values.size == rows * columns * width)
    }

    val high: Int get() = rows
    val wide: Int get() = columns

    fun put(row: Int, column: Int, from: Rows, place: Int) {
        System.arraycopy(from.values, place * width, values, (row * columns + column) * width, width)
    }

    /** Scaled to [size] rows. */
    fun rows(size: Int): FloatMap {
        if (size == rows) return this
        val out = FloatMap(size, columns, width)
        val line = columns * width
        mixed(rows, size) { i, first, after, share ->
            for (j in 0 until line) out.values[i * line + j] = mix(first * line + j, after * line + j, share)
        }
        return out
    }

    /** Scaled to [size] columns. */
    fun columns(size: Int): FloatMap {
        if (size == columns) return this
        val out = FloatMap(rows, size, width)
        mixed(columns, size) { i, first, after, share ->
            for (row in 0 until rows) {
                for (j in 0 until width) {
                    val one = (row * columns + first) * width + j
                    val two = (row * columns + after) * width + j
                    out.values[(row * size + i) * width + j] = mix(one, two, share)
                }
            }
        }
        return out
    }

    private fun mix(first: Int, after: Int, share: Float): Float = values[first] * (1 - share) + values[after] * share

    /** Bilinear between sample centres and without a wider filter: torch's interpolate, in its float32 arithmetic. */
    private inline fun mixed(have: Int, size: Int, put: (Int, Int, Int, Float) -> Unit) {
        val scale = have.toFloat() / size.toFloat()
        for (i in 0 until size) {
            val place = maxOf((i.toFloat() + 0.5f) * scale - 0.5f, 0f)
            val first = minOf(place.toInt(), have - 1)
            put(i, first, minOf(first + 1, have - 1), (place.toDouble() - first).toFloat())
        }
    }
}

/** Rows that are written one behind the other. */
internal class Output(val width: Int, count: Int) {
    private val values = FloatArray(limited(count, width, "A picture's features"))
    private var at = 0

    fun add(row: FloatArray) {
        if (row.size % width != 0) {
            throw EdgeVLMException.RuntimeFailed(
                "The encoder gave features of $width values and preprocess.json has a row of ${row.size}: they " +
                    "disagree; export the bundle again.",
            )
        }
        System.arraycopy(row, 0, values, at, row.size)
        at += row.size
    }

    /** Each row of a map, with a newline behind it. */
    fun ended(map: FloatMap, newline: FloatArray) {
        val line = map.wide * width
        for (row in 0 until map.high) {
            System.arraycopy(map.values, row * line, values, at, line)
            at += line
            add(newline)
        }
    }

    fun rows(): Rows {
        check(at == values.size)
        return Rows(values, width)
    }
}

/** Rows at the top and columns at the left of a map that hold padding, as many as at the other end. */
internal fun padding(width: Int, height: Int, rows: Int, columns: Int): Side {
    if (width / height.toDouble() > columns / rows.toDouble()) {
        return Side(Math.floorDiv(rows - round7(height * (columns / width.toDouble())), 2), 0)
    }
    return Side(0, Math.floorDiv(columns - round7(width * (rows / height.toDouble())), 2))
}

/** Rounded to 7 decimal digits, halves of the exact value to the even one, and then down to a whole number. */
private fun round7(value: Double): Int = BigDecimal(value).setScale(7, RoundingMode.HALF_EVEN).toDouble().toInt()
