package ai.edgevlm.layout

import ai.edgevlm.json.checkSpec

/**
 * How a learned square table of positions is spread over a grid of patches: rows of the table, and shares of them. The
 * float32 arithmetic of `edgevlm/models/towers/tables.py`, which says whose each is.
 */
public object Tables {
    public enum class Kind { CORNERS, CENTERS, SMOOTH, CUBIC, NEAREST, BUCKETED, STEPPED, NONE }

    internal fun kind(text: String): Kind {
        val found = Kind.values().firstOrNull { it.name.lowercase() == text }
        val wanted = Kind.values().joinToString(" or ") { it.name.lowercase() }
        checkSpec(found != null, "manifest", "spec.vision.resample", wanted) { text }
        return found!!
    }

    /** The tower's inputs for patches [flat] in raster order, of a table of [side] x [side]. */
    internal fun resampled(kind: Kind, side: Int, flat: IntArray, rows: Int, columns: Int): Map<String, Tensor> {
        if (kind == Kind.SMOOTH || kind == Kind.CUBIC) {
            val line: (Int, Int) -> FloatArray = { place, count ->
                if (kind == Kind.SMOOTH) triangle(side, place, count) else cubic(side, place, count)
            }
            return dense(side, flat, columns, Array(rows) { line(it, rows) }, Array(columns) { line(it, columns) })
        }
        val down = Array(rows) { along(kind, side, it, rows) }
        val across = Array(columns) { along(kind, side, it, columns) }
        val each = if (kind == Kind.NONE) 2 else down[0].lines.size * across[0].lines.size
        val lines = LongArray(limited(flat.size, each, PatchTower.VIEW))
        val shares = FloatArray(lines.size)
        for (i in flat.indices) {
            val row = down[flat[i] / columns]
            val column = across[flat[i] % columns]
            if (kind == Kind.NONE) { // one table of columns and, behind it, one of rows
                lines[2 * i] = column.lines[0].toLong()
                lines[2 * i + 1] = (side + row.lines[0]).toLong()
                shares[2 * i] = 1f
                shares[2 * i + 1] = 1f
                continue
            }
            for (j in 0 until each) {
                val y = j / column.lines.size
                val x = j % column.lines.size
                lines[i * each + j] = row.lines[y].toLong() * side + column.lines[x]
                shares[i * each + j] = row.shares[y] * column.shares[x]
            }
        }
        return mapOf(
            "table_rows" to LongTensor(intArrayOf(flat.size, each), lines),
            "table_shares" to FloatTensor(intArrayOf(flat.size, each), shares),
        )
    }

    private fun dense(
        side: Int,
        flat: IntArray,
        columns: Int,
        down: Array<FloatArray>,
        across: Array<FloatArray>,
    ): Map<String, Tensor> {
        val shares = FloatArray(limited(flat.size, side * side, PatchTower.VIEW))
        for (i in flat.indices) {
            val row = down[flat[i] / columns]
            val column = across[flat[i] % columns]
            for (j in 0 until side * side) shares[i * side * side + j] = row[j / side] * column[j % side]
        }
        return mapOf("table_shares" to FloatTensor(intArrayOf(flat.size, side * side), shares))
    }

    private class Line(val lines: IntArray, val shares: FloatArray)

    private fun along(kind: Kind, side: Int, place: Int, count: Int): Line {
        val one = floatArrayOf(1f)
        val exact = when (kind) {
            Kind.NONE -> return Line(intArrayOf(place), one)
            Kind.NEAREST -> return Line(intArrayOf(bucket(side, place.toFloat() / count.toFloat())), one)
            Kind.BUCKETED -> {
                val step = 1 / count.toDouble()
                val fraction = torchArange(0.0, step, place, arangeCount(0.0, 1 - 1e-6, step))
                return Line(intArrayOf(bucket(side, fraction)), one)
            }
            Kind.STEPPED -> {
                val fraction = minOf(place.toFloat() * (1f / count.toFloat()), (1.0 - 1e-6).toFloat())
                return Line(intArrayOf(bucket(side, fraction)), one)
            }
            Kind.CENTERS -> (place.toFloat() + 0.5f) * side.toFloat() / count.toFloat() - 0.5f
            else -> place.toFloat() * (side - 1).toFloat() / maxOf(count - 1, 1).toFloat()
        }
        val low = floor(exact)
        val part = exact - low
        val lines = IntArray(2) { minOf(maxOf(low.toInt() + it, 0), side - 1) }
        return Line(lines, floatArrayOf(1 - part, part))
    }

    private fun floor(x: Float): Float = Math.floor(x.toDouble()).toFloat()

    /** Shares of the table's lines along one axis by a triangle that widens where the grid is smaller. */
    private fun triangle(side: Int, place: Int, count: Int): FloatArray {
        val scale = side.toFloat() / count.toFloat()
        val centre = (place.toFloat() + 0.5f) * scale - 0.5f
        val shares = FloatArray(side) { maxOf(1 - Math.abs(it.toFloat() - centre) / maxOf(scale, 1f), 0f) }
        val total = pairwise(shares, 0, side)
        return FloatArray(side) { shares[it] / total }
    }

    /** The sum in numpy's order. */
    private fun pairwise(x: FloatArray, start: Int, count: Int): Float {
        if (count < 8) {
            var sum = 0f
            for (i in start until start + count) sum += x[i]
            return sum
        }
        if (count > 128) {
            val half = count / 2 - count / 2 % 8
            return pairwise(x, start, half) + pairwise(x, start + half, count - half)
        }
        val r = FloatArray(8) { x[start + it] }
        val whole = count - count % 8
        for (i in 8 until whole) r[i % 8] += x[start + i]
        var sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
        for (i in whole until count) sum += x[start + i]
        return sum
    }

    /** The same by torch's bicubic; beyond an edge stands its own line. */
    private fun cubic(side: Int, place: Int, count: Int): FloatArray {
        val sharpness = -0.75f
        val exact = (place.toFloat() + 0.5f) * side.toFloat() / count.toFloat() - 0.5f
        val low = floor(exact)
        val shares = FloatArray(side)
        for (step in -1..2) {
            val off = Math.abs(exact - low - step.toFloat())
            val near = ((sharpness + 2) * off - (sharpness + 3)) * off * off + 1
            val far = (((off - 5) * off + 8) * off - 4) * sharpness
            shares[minOf(maxOf(low.toInt() + step, 0), side - 1)] += if (off <= 1) near else far
        }
        return shares
    }

    /** Which of [side] equal buckets a fraction is in, by bounds that are rounded as torch's are. */
    private fun bucket(side: Int, fraction: Float): Int {
        val step = 1 / side.toDouble()
        val count = arangeCount(step, 1.0, step)
        return (0 until count).count { torchArange(step, step, it, count) <= fraction }
    }

    private fun arangeCount(start: Double, end: Double, step: Double): Int = Math.ceil((end - start) / step).toInt()

    /** Number [index] of torch.arange in float32, as its AVX2 kernel computes [count] of them. */
    private fun torchArange(start: Double, step: Double, index: Int, count: Int): Float {
        if (index >= count / 16 * 16) return (start + step * index).toFloat()
        val base = (start + step * (index / 8 * 8)).toFloat().toDouble()
        return (base + step * (index % 8)).toFloat()
    }
}
