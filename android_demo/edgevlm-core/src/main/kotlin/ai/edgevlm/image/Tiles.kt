package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.json.checkSpec

/**
 * A grid of tiles and then the whole picture.
 *
 * [longestEdge]: the picture is first scaled to it, and then, if that is larger, down to [maxEdge]; null leaves it as
 * it is. [shortEdgeMultiple]: of this first resize. [split]: false for the whole picture alone.
 */
public data class TilesThenWhole(
    val side: Int,
    val longestEdge: Int?,
    val maxEdge: Int,
    val shortEdgeMultiple: Int,
    val split: Boolean,
) : Rule {
    init {
        checkCount("side", side)
        checkCount("longest_edge", longestEdge)
        checkCount("max_edge", maxEdge)
        checkCount("short_edge_multiple", shortEdgeMultiple)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        if (split && budget != 1) {
            for (edge in edges(width, height, budget)) {
                val canvas = canvas(width, height, edge)
                if (canvas.last().width == side && canvas.last().height == side) return listOf(View(canvas))
                if (budget == null || Grids.count(canvas, side) < budget) {
                    return Grids.tiles(canvas, side) + View(canvas + ResizeTo(side, side))
                }
            }
        }
        return listOf(View(scale(width, height, longestEdge) + ResizeTo(side, side)))
    }

    /** The longest edges that a budget may fall back to: the rule's own, then whole numbers of tiles, from 2 up. */
    private fun edges(width: Int, height: Int, budget: Int?): Sequence<Int?> = sequence {
        yield(longestEdge)
        if (budget == null) return@sequence
        val largest = minOf(longestEdge ?: maxOf(width, height), maxEdge)
        // So many tiles along the long edge are at least one more views in all.
        for (count in minOf((largest - 1) / side, budget - 1) downTo 2) yield(count * side)
    }

    /** The resizes to a whole number of tiles. */
    private fun canvas(width: Int, height: Int, longestEdge: Int?): List<Step> {
        val scaled = scale(width, height, longestEdge)
        var wide = (scaled.firstOrNull()?.width ?: width).toLong()
        var high = (scaled.firstOrNull()?.height ?: height).toLong()
        val aspect = wide / high.toDouble()
        if (wide >= high) {
            wide = Grids.ceil(wide / side.toDouble()) * side
            high = Grids.ceil((wide / aspect).toLong() / side.toDouble()) * side
        } else {
            high = Grids.ceil(high / side.toDouble()) * side
            wide = Grids.ceil((high * aspect).toLong() / side.toDouble()) * side
        }
        return scaled + Grids.resize(wide, high)
    }

    /** The first resize, if any. */
    private fun scale(width: Int, height: Int, longestEdge: Int?): List<Step> {
        if (longestEdge == null) return emptyList()
        var wide = longestEdge.toLong()
        var high = wide
        var aspect = width / height.toDouble()
        if (width >= height) high = even((wide / aspect).toLong()) else wide = even((high * aspect).toLong())
        aspect = wide / high.toDouble()
        if (wide >= high && wide > maxEdge) {
            wide = maxEdge.toLong()
            high = maxOf((wide / aspect).toLong(), 1)
        } else if (high > wide && high > maxEdge) {
            high = maxEdge.toLong()
            wide = maxOf((high * aspect).toLong(), 1)
        }
        return listOf(Grids.resize(wide, high))
    }

    private fun even(edge: Long): Long = maxOf(Grids.ceil(edge, shortEdgeMultiple) * shortEdgeMultiple, 1)
}

/**
 * The picture on a grid of whole tiles: first all of it on one, then the tiles.
 *
 * [longestEdge]: more is scaled down to it. [enlarge]: less is scaled up. [wholeResample]: of the whole picture.
 */
public data class WholeThenTiles(
    val side: Int,
    val longestEdge: Int,
    val enlarge: Boolean,
    val wholeResample: Resample,
) : Rule {
    init {
        checkCount("side", side)
        checkCount("longest_edge", longestEdge)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val long = maxOf(width, height)
        val above = Grids.ceil(long / side.toDouble()) * side
        val edge = if (enlarge) longestEdge else minOf(longestEdge.toLong(), above).toInt()
        var tried = edge
        while (tried > side) {
            val canvas = listOf(canvas(width, height, tried))
            if (budget == null || Grids.count(canvas, side) < budget) {
                return listOf(View(canvas + ResizeTo(side, side, wholeResample))) + Grids.tiles(canvas, side)
            }
            tried -= side
        }
        return listOf(View(ResizeTo(side, side)))
    }

    private fun canvas(width: Int, height: Int, edge: Int): ResizeTo {
        val share = edge / maxOf(width, height).toDouble()
        val other = maxOf(Grids.ceil(minOf(width, height) * share / side) * side, side.toLong())
        return if (width >= height) Grids.resize(edge.toLong(), other) else Grids.resize(other, edge.toLong())
    }
}

/**
 * Pictures that are cut into up to [most] tiles: scaled by less than [scale] in width otherwise, and of more than
 * [above] and up to [below] times their height in width. null: whatever.
 */
public data class Dense(val most: Int, val scale: Double?, val above: Double?, val below: Double?) {
    init {
        checkCount("dense.most", most, Limits.GRID_TILES)
    }
}

/**
 * The grid of [least] to [most] tiles whose shape is nearest to the picture's.
 *
 * [thumbnail]: the whole picture comes last, where there are several tiles. [longest]: tiles per side, at most.
 * [numbered]: a single view is the tile in row 1, column 1. [dense]: pictures with another [most].
 */
public data class RatioTiles(
    val side: Int,
    val least: Int,
    val most: Int,
    val thumbnail: Boolean,
    val longest: Int? = null,
    val numbered: Boolean = false,
    val dense: Dense? = null,
) : Rule {
    init {
        checkCount("side", side)
        checkCount("least", least, minOf(most, Limits.GRID_TILES))
        checkCount("most", most, Limits.GRID_TILES)
        checkCount("longest", longest, Limits.GRID_TILES)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val own = if (dense != null && isDense(width, height, dense)) dense.most else most
        val most = own.orBudget(budget, if (thumbnail) 1 else 0)
        val grid = Grids.nearest(width, height, side, minOf(least, most), most, longest)
        val whole = View(ResizeTo(side, side))
        if (grid.tiles == 1 && !numbered) return listOf(whole)
        val tiles = Grids.tiles(listOf(Grids.resize(grid.columns.toLong() * side, grid.rows.toLong() * side)), side)
        return if (thumbnail && tiles.size > 1) tiles + whole else tiles
    }

    private fun isDense(width: Int, height: Int, dense: Dense): Boolean {
        val shape = width / height.toDouble()
        if ((dense.above != null && shape <= dense.above) || (dense.below != null && shape > dense.below)) return false
        val grid = Grids.nearest(width, height, side, least, most, longest)
        return dense.scale == null || grid.columns.toLong() * side / width.toDouble() < dense.scale
    }
}

/**
 * The picture stretched to one view, then its tiles on the grid of [grids] (rows and columns) that shows most of its
 * pixels. There it keeps its shape, in the middle of a black canvas ("anyres").
 */
public data class BestGrid(val side: Int, val grids: List<Place>) : Rule {
    init {
        checkCount("side", side)
        val good = grids.size in 1..Limits.GRIDS &&
            grids.all { minOf(it.row, it.column) > 0 && it.row.toLong() * it.column <= Limits.GRID_TILES }
        val wanted = "1 to ${Limits.GRIDS}, of 1 to ${Limits.GRID_TILES} tiles each"
        checkSpec(good, "image", "grids", wanted) { grids }
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val whole = View(ResizeTo(side, side))
        val offered = grids.map { Grid(it.column, it.row) }.filter { budget == null || it.tiles < budget }
        if (offered.isEmpty()) return listOf(whole)
        val grid = Grids.fullest(width, height, side, offered)
        val canvas = Grids.centred(width, height, grid.columns * side, grid.rows * side)
        return listOf(whole) + Grids.tiles(canvas, side)
    }
}

/**
 * The picture stretched to one view; where that shows too little of it, then its tiles on the smallest grid that shows
 * enough.
 */
public data class CoveringTiles(val side: Int, val most: Int) : Rule {
    init {
        checkCount("side", side)
        checkCount("most", most, Limits.GRID_TILES)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val whole = View(ResizeTo(side, side))
        val grid = Grids.covering(width, height, side, most.orBudget(budget, 1))
        if (grid.tiles == 1) return listOf(whole)
        return listOf(whole) + Grids.tiles(listOf(ResizeTo(grid.columns * side, grid.rows * side)), side)
    }
}

/**
 * The picture in its own shape at the top left of a canvas of up to [most] tiles: as many as it covers, or the grid
 * whose shape is nearest. Tiles lack the whole patches of padding. Then the canvas, scaled to one view by
 * [wholeResample].
 *
 * [patch], [unit]: pixels per side of a patch and of a token.
 */
public data class PaddedTiles(
    val side: Int,
    val patch: Int,
    val unit: Int,
    val most: Int,
    val color: Color,
    val wholeResample: Resample,
) : Rule {
    init {
        checkCount("side", side)
        checkCount("patch", patch)
        checkCount("unit", unit)
        checkCount("most", most, Limits.GRID_TILES)
        checkColor("color", color)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val most = most.orBudget(budget, 1)
        val columns = Grids.ceil(width / side.toDouble())
        val rows = Grids.ceil(height / side.toDouble())
        val covered = columns * rows <= most
        val grid = if (covered) Grid(columns.toInt(), rows.toInt()) else Grids.nearest(width, height, side, 1, most)
        val wide = grid.columns * side
        val high = grid.rows * side
        val across = wide / width.toDouble()
        val down = high / height.toDouble()
        val size = if (across < down) {
            ResizeTo(wide, (height * across).toInt())
        } else {
            ResizeTo((width * down).toInt(), high)
        }
        if (minOf(size.width, size.height) < THIN) {
            throw EdgeVLMException.ImageError(
                "A picture of $width x $height is too elongated for this model: cut it into pieces.",
            )
        }
        val canvas = listOf(size, PadTo(wide, high, 0, 0, color))
        val right = wide - (wide - size.width) / patch * patch
        val bottom = high - (high - size.height) / patch * patch
        val tiles = Grids.tiles(canvas, side).map { tile ->
            val crop = tile.steps.last() as CropTo
            val shown = crop.copy(width = minOf(side, right - crop.left), height = minOf(side, bottom - crop.top))
            View(canvas + shown, tile.place)
        }
        return tiles + View(canvas + ResizeTo(side, side, wholeResample))
    }

    private companion object {
        const val THIN = 10 // pixels
    }
}

/** One sheet: the picture stretched to a square, and up to [most] crops of it that overlap by two margins. */
public data class OverlappingTiles(val side: Int, val margin: Int, val most: Int) : Rule {
    init {
        checkCount("side", side)
        checkCount("margin", margin, Math.floorDiv(side - 1, 2))
        checkCount("most", most, Limits.GRID_TILES)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val both = 2 * margin
        val step = side - both
        val grid = Grids.overlapping(width - both, height - both, step, most.orBudget(budget, 1))
        val canvas = ResizeTo(grid.columns * step + both, grid.rows * step + both)
        val crops = (0 until grid.rows).flatMap { row ->
            (0 until grid.columns).map { View(canvas, CropTo(it * step, row * step, side, side)) }
        }
        return listOf(View(Sheet(listOf(View(ResizeTo(side, side))) + crops, grid.columns)))
    }
}
