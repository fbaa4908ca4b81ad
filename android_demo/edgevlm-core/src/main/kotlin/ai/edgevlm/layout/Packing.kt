package ai.edgevlm.layout

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.image.View
import ai.edgevlm.json.checkSpec

/** Rows and columns. */
public data class Side(val rows: Int, val columns: Int) {
    public val size: Int get() = rows * columns
}

/** Rows of [width] numbers each, one behind the other. */
public class Rows(public val values: FloatArray, public val width: Int) {
    init {
        require(width > 0 && values.size % width == 0)
    }

    public val count: Int get() = values.size / width
}

/**
 * How the features of a picture's views become one run of image tokens: `docs/preprocessing.md`, section 9.
 *
 * [most]: a map larger than so many views is scaled down to them; null: maps stay as they are. [newline]: the learned
 * row that ends each row of a map. [framed]: a picture is one view of any size, all of whose rows end so, between the
 * learned rows [begin] and [end]. [wholeLast]: the map of the tiles, whose views lack their padding, comes first and is
 * never scaled; then a learned row, [separator]; then the whole picture, whose rows end in newlines, too.
 */
public data class Packing(
    val most: Int? = null,
    val newline: List<Double> = emptyList(),
    val framed: Boolean = false,
    val begin: List<Double> = emptyList(),
    val end: List<Double> = emptyList(),
    val wholeLast: Boolean = false,
    val separator: List<Double> = emptyList(),
) {
    init {
        val tiles = Limits.GRID_TILES
        checkSpec(most == null || most in 1..tiles, "image", "packing.most", "1 to $tiles") { most }
        val rows = mapOf("newline" to newline, "begin" to begin, "end" to end, "separator" to separator)
        for ((name, row) in rows) {
            checkSpec(row.size <= Limits.WIDTH, "image", "packing.$name", "a row of features") { row.size }
        }
        checkSpec(!framed || most == null, "image", "packing.most", "null beside framed") { most }
        val alone = !wholeLast || (most == null && !framed)
        checkSpec(alone, "image", "packing.whole_last", "false beside framed and most") { wholeLast }
    }

    /**
     * What becomes of the features of [views], of a picture of [width] x [height] pixels.
     *
     * [sides]: rows and columns of features of each view.
     */
    internal fun plan(width: Int, height: Int, views: List<View>, sides: List<Side>): Packed {
        val side = sides[0]
        sides.firstOrNull { minOf(it.rows, it.columns) < 1 }?.let {
            throw EdgeVLMException.ImageError(
                "A view of ${it.rows} x ${it.columns} image tokens is none: give a larger picture.",
            )
        }
        if (framed) return Framed(side, floats(newline), floats(begin), floats(end))
        if (wholeLast) {
            return Joined(sides, views.count { it.place?.row == 1 }, floats(newline), floats(separator))
        }
        val last = views.mapNotNull { it.place }.maxWithOrNull(compareBy({ it.row }, { it.column }))
        val tiles = Side(last?.row ?: 0, last?.column ?: 0)
        var rows = tiles.rows * side.rows
        var columns = tiles.columns * side.columns
        val cut = if (views.size > 1) padding(width, height, rows, columns) else Side(0, 0)
        rows -= 2 * cut.rows
        columns -= 2 * cut.columns
        if (most != null) {
            val ratio = Math.sqrt(rows.toLong() * columns / (most.toLong() * side.rows * side.rows).toDouble())
            if (ratio > 1.1) {
                rows = Math.floor(rows / ratio).toInt()
                columns = Math.floor(columns / ratio).toInt()
                if (minOf(rows, columns) < 1) {
                    throw EdgeVLMException.ImageError(
                        "A picture of $width x $height is too elongated for this model: cut it into pieces.",
                    )
                }
            }
        }
        return Stitched(side, tiles, cut, Side(rows, columns), floats(newline))
    }

    private fun floats(row: List<Double>) = FloatArray(row.size) { row[it].toFloat() }
}

/** How the features of some views become image tokens. */
public sealed interface Packed {
    /** Features that an encoder gives for each view. */
    public val counts: List<Int>

    public val tokens: Int

    /** Each view's features in order, to the tokens' rows. */
    public fun run(features: List<Rows>): Rows
}

/**
 * The whole picture's features first, then the map of its tiles.
 *
 * [tiles]: (0, 0) is the whole picture alone, then one newline. [cut]: rows and columns that are left out at either end
 * of the map. [map]: of what is left, after scaling.
 */
public class Stitched internal constructor(
    public val side: Side,
    public val tiles: Side,
    public val cut: Side,
    public val map: Side,
    private val newline: FloatArray,
) : Packed {
    override val counts: List<Int> get() = List(1 + tiles.size) { side.size }
    override val tokens: Int get() = side.size + if (tiles.size > 0) map.rows * (map.columns + 1) else 1

    override fun run(features: List<Rows>): Rows {
        val whole = features[0]
        val out = Output(whole.width, tokens)
        out.add(whole.values)
        if (tiles.size == 0) {
            out.add(newline)
            return out.rows()
        }
        val high = tiles.rows * side.rows - 2 * cut.rows
        val wide = tiles.columns * side.columns - 2 * cut.columns
        val kept = FloatMap(high, wide, whole.width)
        for (row in 0 until high) {
            val y = row + cut.rows
            for (column in 0 until wide) {
                val x = column + cut.columns
                val tile = features[1 + y / side.rows * tiles.columns + x / side.columns]
                kept.put(row, column, tile, y % side.rows * side.columns + x % side.columns)
            }
        }
        out.ended(kept.rows(map.rows).columns(map.columns), newline)
        return out.rows()
    }

    override fun equals(other: Any?): Boolean =
        other is Stitched && side == other.side && tiles == other.tiles && cut == other.cut && map == other.map

    override fun hashCode(): Int = listOf(side, tiles, cut, map).hashCode()
}

/** Each row of a view's features ends in a newline; one row is before all of them, one behind. */
public class Framed internal constructor(
    public val side: Side,
    private val newline: FloatArray,
    private val begin: FloatArray,
    private val end: FloatArray,
) : Packed {
    override val counts: List<Int> get() = listOf(side.size)

    /** Rows and columns of tokens between the first and the last. */
    public val lines: Side get() = Side(side.rows, side.columns + 1)
    override val tokens: Int get() = lines.size + 2

    override fun run(features: List<Rows>): Rows {
        val out = Output(features[0].width, tokens)
        out.add(begin)
        out.ended(FloatMap(side.rows, side.columns, out.width, features[0].values), newline)
        out.add(end)
        return out.rows()
    }

    override fun equals(other: Any?): Boolean = other is Framed && side == other.side

    override fun hashCode(): Int = side.hashCode()
}

/**
 * The map of a picture's tiles, a separator and the whole picture, each row of both with a newline.
 *
 * [sides]: of each view: tiles row by row, then the whole picture. [columns]: of tiles.
 */
public class Joined internal constructor(
    public val sides: List<Side>,
    public val columns: Int,
    private val newline: FloatArray,
    private val separator: FloatArray,
) : Packed {
    private val high = (0 until sides.size - 1 step columns).sumOf { sides[it].rows }
    private val wide = sides.take(columns).sumOf { it.columns }
    override val counts: List<Int> get() = sides.map { it.size }
    override val tokens: Int get() = high * (wide + 1) + 1 + sides.last().rows * (sides.last().columns + 1)

    override fun run(features: List<Rows>): Rows {
        val out = Output(features[0].width, tokens)
        val map = FloatMap(high, wide, out.width)
        var top = 0
        for (first in 0 until sides.size - 1 step columns) {
            var left = 0
            for (tile in first until first + columns) {
                val side = sides[tile]
                for (i in 0 until side.size) {
                    map.put(top + i / side.columns, left + i % side.columns, features[tile], i)
                }
                left += side.columns
            }
            top += sides[first].rows
        }
        out.ended(map, newline)
        out.add(separator)
        out.ended(FloatMap(sides.last().rows, sides.last().columns, out.width, features.last().values), newline)
        return out.rows()
    }

    override fun equals(other: Any?): Boolean = other is Joined && sides == other.sides && columns == other.columns

    override fun hashCode(): Int = listOf(sides, columns).hashCode()
}

/** A video's frames: each frame's map at half its sides, one behind the other, then a newline. */
public class Pooled(public val side: Side, public val views: Int, private val newline: FloatArray) : Packed {
    override val counts: List<Int> get() = List(views) { side.size }

    /** Of a frame. */
    public val map: Side get() = Side((side.rows + 1) / 2, (side.columns + 1) / 2)
    override val tokens: Int get() = views * map.size + 1

    override fun run(features: List<Rows>): Rows {
        val out = Output(features[0].width, tokens)
        for (frame in features) {
            val whole = FloatMap(side.rows, side.columns, out.width, frame.values)
            out.add(whole.rows(map.rows).columns(map.columns).values)
        }
        out.add(newline)
        return out.rows()
    }

    override fun equals(other: Any?): Boolean = other is Pooled && side == other.side && views == other.views

    override fun hashCode(): Int = listOf(side, views).hashCode()
}
