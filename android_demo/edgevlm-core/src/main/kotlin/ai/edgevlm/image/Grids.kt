package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits

/** Columns and rows of tiles. */
internal data class Grid(val columns: Int, val rows: Int) {
    val tiles: Int get() = columns * rows
}

/** Sizes in whole units, and which grid of tiles a picture takes: `edgevlm/inputs/grids.py`, in the same arithmetic. */
internal object Grids {
    private const val ENOUGH = 0.9 // of a picture's pixels

    fun ceil(length: Long, unit: Int): Long = -Math.floorDiv(-length, unit.toLong())

    /** Half to even, as Python rounds. */
    fun round(x: Double): Long = Math.rint(x).toLong()

    fun ceil(x: Double): Long = Math.ceil(x).toLong()

    fun floor(x: Double): Long = Math.floor(x).toLong()

    fun resize(width: Long, height: Long, resample: Resample? = null): ResizeTo {
        if (width > Int.MAX_VALUE || height > Int.MAX_VALUE) {
            throw EdgeVLMException.ImageError(
                "A picture would become $width x $height pixels, at most 89.5 million are made: cut it into less " +
                    "elongated pieces first.",
            )
        }
        return ResizeTo(width.toInt(), height.toInt(), resample)
    }

    /**
     * A view near [width] x [height]: multiples of [unit], at least one each, [least] to [most] pixels in all.
     *
     * [begin]: the least that an edge is rounded to before the pixels are counted. [frames]: so many pictures have the
     * pixels together, which are first counted in whole groups of [group].
     */
    fun near(
        width: Long,
        height: Long,
        unit: Int,
        least: Long,
        most: Long,
        begin: Int,
        frames: Int = 1,
        group: Int = 1,
    ): ResizeTo {
        val wide = maxOf(begin.toLong(), round(width / unit.toDouble()) * unit)
        val high = maxOf(begin.toLong(), round(height / unit.toDouble()) * unit)
        val pixels = (round(frames / group.toDouble()) * group).toDouble() * wide * high
        if (pixels > most) {
            val beta = Math.sqrt((frames * height * width) / most.toDouble())
            return resize(
                maxOf(unit.toLong(), floor(width / beta / unit) * unit),
                maxOf(unit.toLong(), floor(height / beta / unit) * unit),
            )
        }
        if (pixels < least) {
            val beta = Math.sqrt(least / (frames * height * width).toDouble())
            return resize(ceil(width * beta / unit) * unit, ceil(height * beta / unit) * unit)
        }
        return resize(wide, high)
    }

    /** The grid of [least] to [most] tiles, [longest] per side, whose shape is nearest to the picture's. */
    fun nearest(width: Int, height: Int, side: Int, least: Int, most: Int, longest: Int? = null): Grid {
        var best = Grid(1, 1)
        var gap = Double.POSITIVE_INFINITY
        val shape = width / height.toDouble()
        val pixels = (width.toLong() * height).toDouble()
        for (grid in all(least, most)) {
            if (longest != null && maxOf(grid.columns, grid.rows) > longest) continue
            val off = Math.abs(shape - grid.columns / grid.rows.toDouble())
            // Of grids that fit equally well, the larger one, as long as the picture has half its pixels.
            if (off < gap || (off == gap && pixels > 0.5 * side * side * grid.columns * grid.rows)) {
                best = grid
                gap = off
            }
        }
        return best
    }

    /** Every grid of [least] to [most] tiles, by their number, then by columns. */
    private fun all(least: Int, most: Int): List<Grid> {
        val found = ArrayList<Grid>()
        for (columns in 1..most) {
            for (rows in 1..most / columns) if (columns * rows >= least) found += Grid(columns, rows)
        }
        return found.sortedBy { it.tiles } // keeps the order of equal ones
    }

    /** Of the [offered] grids, that which shows most pixels; of equal ones, that which leaves least empty. */
    fun fullest(width: Int, height: Int, side: Int, offered: List<Grid>): Grid {
        var best = offered[0]
        var most = Long.MIN_VALUE
        var least = Long.MIN_VALUE
        for (grid in offered) {
            val wide = grid.columns.toLong() * side
            val high = grid.rows.toLong() * side
            val scale = minOf(wide / width.toDouble(), high / height.toDouble())
            val inside = (width * scale).toLong() * (height * scale).toLong()
            val shown = minOf(inside, width.toLong() * height)
            val empty = shown - wide * high
            if (shown > most || (shown == most && empty > least)) {
                best = grid
                most = shown
                least = empty
            }
        }
        return best
    }

    /** A picture in its own shape in the middle of a black canvas. */
    fun centred(width: Int, height: Int, wide: Int, high: Int): List<Step> {
        val across = wide / width.toDouble()
        val down = high / height.toDouble()
        val a = if (across < down) wide else minOf(ceil(width * down), wide.toLong()).toInt()
        val b = if (across < down) minOf(ceil(height * across), high.toLong()).toInt() else high
        return listOf(ResizeTo(a, b), PadTo(wide, high, (wide - a) / 2, (high - b) / 2, Color.BLACK))
    }

    /**
     * The smallest grid of up to [most] tiles that shows enough of the picture, or the one that shows most.
     *
     * The share that counts for n columns and m rows is that of n rows and m columns, as in the original processors.
     */
    fun covering(width: Int, height: Int, side: Int, most: Int): Grid {
        val grids = all(1, most)
        val shares = grids.map { shown(width, height, side, it.columns, it.rows) }
        val order = grids.indices.filter { shares[it] > ENOUGH }
        if (order.isNotEmpty()) {
            val tiles = order.minOf { grids[it].tiles }
            return grids[order.filter { grids[it].tiles == tiles }.maxByOrFirst { shares[it] }]
        }
        val share = shares.maxOf { it }
        return grids[grids.indices.first { shares[it] == share }] // the first has the fewest tiles
    }

    private inline fun List<Int>.maxByOrFirst(value: (Int) -> Double): Int {
        var best = first()
        for (each in this) if (value(each) > value(best)) best = each
        return best
    }

    /** Of the picture's pixels, those that its parts have once they are scaled down to [side]. */
    private fun shown(width: Int, height: Int, side: Int, rows: Int, columns: Int): Double {
        var sum = 0.0
        for (row in 0 until rows) {
            val high = if (row < rows - 1) height / rows else height - height / rows * (rows - 1)
            for (column in 0 until columns) {
                val wide = if (column < columns - 1) width / columns else width - width / columns * (columns - 1)
                val long = maxOf(wide, high)
                val short = minOf(wide, high)
                sum += if (long > side) side * (short / long.toDouble() * side) else (long.toLong() * short).toDouble()
            }
        }
        return sum / (width.toLong() * height)
    }

    /** Crops that are [step] pixels apart, up to [most], for a picture without its margins of that size. */
    fun overlapping(width: Int, height: Int, step: Int, most: Int): Grid {
        if (height <= step || width <= step) return Grid(1, 1)
        val high = ceil(height / step.toDouble())
        val wide = ceil(width / step.toDouble())
        if (high * wide > most) {
            val ratio = Math.sqrt(most / (high * wide).toDouble())
            return Grid(maxOf(1, floor(wide * ratio)).toInt(), maxOf(1, floor(high * ratio)).toInt())
        }
        var rows = maxOf(floor(Math.sqrt(most.toLong() * height / width.toDouble())), high)
        var columns = maxOf(floor(Math.sqrt(most.toLong() * width / height.toDouble())), wide)
        if (rows * columns > most) {
            if (columns > rows) columns = most / rows else rows = most / columns
        }
        return Grid(maxOf(1, columns).toInt(), maxOf(1, rows).toInt())
    }

    /** Tiles of [side] pixels on a canvas. */
    fun count(canvas: List<Step>, side: Int): Long =
        (canvas.last().width / side).toLong() * (canvas.last().height / side)

    fun tiles(canvas: List<Step>, side: Int): List<View> = parts(canvas, side, side)

    /** Rectangles, row by row. */
    fun parts(canvas: List<Step>, wide: Int, high: Int): List<View> {
        val columns = canvas.last().width / wide
        val rows = canvas.last().height / high
        if (columns.toLong() * rows > Limits.VIEWS) {
            throw EdgeVLMException.ImageError(
                "A picture would be cut into ${columns.toLong() * rows} tiles of $wide x $high pixels, at most " +
                    "${Limits.VIEWS} are made: scale it down first, or export the bundle again.",
            )
        }
        return (0 until rows).flatMap { row ->
            (0 until columns).map { View(canvas + CropTo(it * wide, row * high, wide, high), Place(row + 1, it + 1)) }
        }
    }

    /** A square canvas around the middle of a picture that is none. */
    fun square(width: Int, height: Int, color: Color): List<Step> {
        val side = maxOf(width, height)
        if (width == height) return emptyList()
        return listOf(PadTo(side, side, (side - width) / 2, (side - height) / 2, color))
    }
}
