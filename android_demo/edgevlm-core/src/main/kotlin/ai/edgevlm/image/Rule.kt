package ai.edgevlm.image

import ai.edgevlm.Limits
import ai.edgevlm.json.checkSpec

/**
 * What a family's image processor does to a picture of some size: `docs/preprocessing.md`, section 3.
 *
 * Each kind is a class of its own, whose fields are those of `preprocess.json`; a value beyond its bounds is refused
 * with `EdgeVLMException.BundleError`.
 */
public sealed interface Rule {
    /**
     * The views of a picture, in the order in which a prompt names them.
     *
     * [budget]: the most views that it may have; null leaves that to the rule, and rules without tiles ignore it.
     */
    public fun views(width: Int, height: Int, budget: Int? = null): List<View>
}

/** Every whole number of a rule is at least 1 and bounded. */
internal fun checkCount(name: String, value: Int?, most: Int = Limits.VIEW_SIDE) {
    if (value != null) checkSpec(value in 1..most, "image", name, "1 to $most") { value }
}

internal fun checkColor(name: String, color: Color) {
    val good = listOf(color.red, color.green, color.blue).all { it in 0..255 }
    checkSpec(good, "image", name, "0 to 255") { color }
}

internal fun Int.orBudget(budget: Int?, without: Int): Int =
    if (budget == null) this else maxOf(1, minOf(this, budget - without))

/** One square view, whatever the picture's shape (SigLIP). */
public data class Stretch(val side: Int) : Rule {
    init {
        checkCount("side", side)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> = listOf(View(ResizeTo(side, side)))
}

/** The short edge to [shortest], then the square in the middle (CLIP). */
public data class Crop(val shortest: Int, val side: Int) : Rule {
    init {
        checkCount("shortest", shortest)
        checkCount("side", side, minOf(shortest, Limits.VIEW_SIDE))
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val long = (shortest.toLong() * maxOf(width, height) / minOf(width, height).toDouble()).toLong()
        val size = if (width <= height) Grids.resize(shortest.toLong(), long) else Grids.resize(long, shortest.toLong())
        val middle = CropTo((size.width - side) / 2, (size.height - side) / 2, side, side)
        return listOf(View(size, middle))
    }
}

/** The picture in the middle of a square canvas, then that resized. */
public data class Pad(val side: Int, val color: Color) : Rule {
    init {
        checkCount("side", side)
        checkColor("color", color)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> =
        listOf(View(Grids.square(width, height, color) + ResizeTo(side, side)))
}

/** The long edge to [side], the other to no less than [least]; then a square canvas around it. */
public data class Fit(val side: Int, val least: Int, val color: Color) : Rule {
    init {
        checkCount("side", side)
        checkCount("least", least)
        checkColor("color", color)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val scale = side / maxOf(width, height).toDouble()
        val wide = maxOf(Grids.round(width * scale), least.toLong()).toInt()
        val high = maxOf(Grids.round(height * scale), least.toLong()).toInt()
        return listOf(View(listOf<Step>(ResizeTo(wide, high)) + Grids.square(wide, high, color)))
    }
}

/** Views of about [side] x [side] pixels in the picture's shape: all of it, then up to [most] slices of a large one. */
public data class WholeThenSlices(val unit: Int, val side: Int, val most: Int) : Rule {
    init {
        checkCount("unit", unit)
        checkCount("side", side)
        checkCount("most", most, Limits.GRID_TILES)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val grid = grid(width, height, if (budget == null) most else minOf(most, budget - 1))
        val whole = View(near(width.toDouble(), height.toDouble()))
        if (grid.tiles == 1) return listOf(whole)
        val slice = near(
            multiple(width.toDouble(), grid.columns) / grid.columns.toDouble(),
            multiple(height.toDouble(), grid.rows) / grid.rows.toDouble(),
        )
        val canvas = Grids.resize(grid.columns.toLong() * slice.width, grid.rows.toLong() * slice.height)
        return listOf(whole) + Grids.parts(listOf(canvas), slice.width, slice.height)
    }

    /** That area in the same shape. */
    private fun near(width: Double, height: Double): ResizeTo {
        val shape = width / height
        val high = (side / Math.sqrt(shape)).toLong()
        return Grids.resize(multiple((high * shape).toLong().toDouble(), unit), multiple(high.toDouble(), unit))
    }

    private fun multiple(length: Double, unit: Int): Long = maxOf(Grids.round(length / unit) * unit, unit.toLong())

    private fun grid(width: Int, height: Int, most: Int): Grid {
        val pixels = width.toLong() * height
        val count = minOf(Grids.ceil(pixels / (side.toLong() * side).toDouble()), most.toLong()).toInt()
        var best = Grid(1, 1)
        if (count <= 1) return best
        val shape = Logarithm.of(width / height.toDouble())
        var gap = Double.POSITIVE_INFINITY
        for (number in maxOf(2, count - 1)..minOf(count + 1, most)) {
            for (rows in (1..number).filter { number % it == 0 }) {
                val off = Math.abs(shape - Logarithm.of(number / rows / rows.toDouble()))
                if (off < gap || (off == gap && rows > best.rows)) {
                    best = Grid(number / rows, rows)
                    gap = off
                }
            }
        }
        return best
    }
}
