package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.json.checkSpec

/** Near the picture's own size: both edges multiples of [unit], [least] to [most] pixels in all (Qwen2-VL). */
public data class Native(val unit: Int, val least: Int, val most: Int) : Rule {
    init {
        checkNative(unit, least.toLong(), most.toLong())
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> =
        native(width.toLong(), height.toLong()) { w, h -> Grids.near(w, h, unit, least.toLong(), most.toLong(), 0) }
}

/** The same, of a picture whose edges are at least [unit]: a shorter one is first scaled up to it (PaddleOCR-VL). */
public data class NativeGrown(val unit: Int, val least: Int, val most: Int) : Rule {
    init {
        checkNative(unit, least.toLong(), most.toLong())
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        var wide = width.toLong()
        var high = height.toLong()
        if (high < unit) {
            wide = Grids.round(wide * unit / high.toDouble())
            high = unit.toLong()
        }
        if (wide < unit) {
            high = Grids.round(high * unit / wide.toDouble())
            wide = unit.toLong()
        }
        return native(wide, high) { w, h -> Grids.near(w, h, unit, least.toLong(), most.toLong(), 0) }
    }
}

/** The same, of a picture that is first scaled up as a whole where an edge is shorter than [unit] (GLM-4.1V). */
public data class NativeScaled(val unit: Int, val least: Int, val most: Int) : Rule {
    init {
        checkNative(unit, least.toLong(), most.toLong())
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> =
        scaled(width, height, unit) { w, h -> Grids.near(w, h, unit, least.toLong(), most.toLong(), 0) }
}

/**
 * A frame near its own size, as [Native], of a video of which [count] are taken, [group] for each view.
 *
 * [together]: [least] and [most] are of all frames, not of each. [cap]: further pixels that are not exceeded: of each
 * frame where the others are of all, and of all where they are of each, shared evenly.
 */
public data class NativeFrames(
    val unit: Int,
    val least: Long,
    val most: Long,
    val together: Boolean = false,
    val group: Int = 2,
    val cap: Int? = null,
    val count: Int = 1,
) : Rule {
    init {
        checkNative(unit, least, most, Limits.NATIVE_PIXELS * if (together) Limits.FRAMES.toLong() else 1L)
        checkCount("group", group)
        checkCount("cap", cap, Limits.COUNT)
        checkCount("count", count, Limits.FRAMES)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        if (!together) return native(width.toLong(), height.toLong(), ::near)
        return scaled(width, height, unit, ::near)
    }

    private fun near(width: Long, height: Long): ResizeTo {
        val floor = (least * MORE).toLong()
        val frames = maxOf(count, group)
        if (!together) {
            val most = if (cap == null) most else maxOf(minOf(most, cap.toLong() * group / frames), floor)
            return Grids.near(width, height, unit, least, most, 0)
        }
        val most = if (cap == null) most else maxOf(minOf(cap.toLong(), most / frames), floor) * frames
        return Grids.near(width, height, unit, least, most, 0, frames, group)
    }

    private companion object {
        const val MORE = 1.05 // of the least pixels: a share is never smaller
    }
}

/**
 * A picture near its own size, as [Native]; a larger one in the grid of tiles whose shape is nearest to its own.
 *
 * [patch], [unit]: pixels per side of a patch and of a token. [least], [most]: pixels of a view near the picture's own
 * size. [large]: pixels of the picture in whole units, from which on it is cut. [fewest], [count]: tiles; 1 and 1 cut
 * none. [thumbnail]: the whole picture, near its own size, comes behind its tiles.
 */
public data class NativeOrTiles(
    val patch: Int,
    val unit: Int,
    val least: Int,
    val most: Int,
    val large: Int,
    val side: Int,
    val fewest: Int,
    val count: Int,
    val thumbnail: Boolean,
) : Rule {
    init {
        checkCount("patch", patch)
        checkNative(unit, least.toLong(), most.toLong())
        checkCount("large", large, Limits.COUNT)
        checkCount("side", side)
        checkCount("fewest", fewest, minOf(count, Limits.GRID_TILES))
        checkCount("count", count, Limits.GRID_TILES)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val whole = View(Grids.near(width.toLong(), height.toLong(), unit, least.toLong(), most.toLong(), unit))
        val wide = maxOf(patch.toLong(), Grids.round(width / unit.toDouble()) * unit)
        val high = maxOf(patch.toLong(), Grids.round(height / unit.toDouble()) * unit)
        val tiles = if (budget == null) count else minOf(count, budget - if (thumbnail) 1 else 0)
        if (wide * high <= large || tiles < maxOf(2, fewest)) return listOf(whole)
        val grid = Grids.nearest(width, height, side, fewest, tiles)
        val found = Grids.tiles(listOf(ResizeTo(grid.columns * side, grid.rows * side)), side)
        return if (thumbnail) found + whole else found
    }
}

/**
 * The largest view of the picture's shape whose edges are multiples of [unit] and that has at most [tokens] units.
 *
 * Smaller pictures are enlarged. One that would be less than a unit wide becomes a unit wide.
 */
public data class Filled(val unit: Int, val tokens: Int) : Rule {
    init {
        checkCount("unit", unit)
        checkCount("tokens", tokens, minOf(Limits.VIEW_SIDE / unit, Limits.NATIVE_PIXELS / (unit * unit)))
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val factor = Math.sqrt(tokens.toLong() * unit * unit / (width.toLong() * height).toDouble())
        var wide = Grids.floor(factor * width / unit)
        var high = Grids.floor(factor * height / unit)
        if (high == 0L) {
            wide = minOf(width / height, tokens).toLong()
            high = 1
        } else if (wide == 0L) {
            wide = 1
            high = minOf(height / width, tokens).toLong()
        }
        return listOf(View(Grids.resize(wide * unit, high * unit)))
    }
}

/** The picture as it is, but no edge longer than [longest]; then edges stretched up to multiples of [unit]. */
public data class Within(val unit: Int, val longest: Int) : Rule {
    init {
        checkCount("unit", unit)
        checkCount("longest", longest)
    }

    override fun views(width: Int, height: Int, budget: Int?): List<View> {
        val ratio = maxOf(height / longest.toDouble(), width / longest.toDouble())
        val wide = if (ratio > 1) Grids.floor(width / ratio) else width.toLong()
        val high = if (ratio > 1) Grids.floor(height / ratio) else height.toLong()
        if (minOf(wide, high) < 1) {
            throw EdgeVLMException.ImageError(
                "A picture of $width x $height is less than a pixel wide at $longest pixels of length: cut it into " +
                    "less elongated pieces first.",
            )
        }
        return listOf(View(Grids.resize(Grids.ceil(wide, unit) * unit, Grids.ceil(high, unit) * unit)))
    }
}

private fun checkNative(unit: Int, least: Long, most: Long, largest: Long = Limits.NATIVE_PIXELS.toLong()) {
    checkCount("unit", unit)
    val above = minOf(most, Limits.NATIVE_PIXELS.toLong())
    checkSpec(least in 1..above, "image", "least", "1 to $above") { least }
    checkSpec(most in 1..largest, "image", "most", "1 to $largest") { most }
}

private inline fun native(width: Long, height: Long, near: (Long, Long) -> ResizeTo): List<View> {
    if (maxOf(width, height) > 200 * minOf(width, height)) {
        throw EdgeVLMException.ImageError(
            "A picture of $width x $height is more than 200 times as long as wide, which this model does not take: " +
                "cut it into less elongated pieces first.",
        )
    }
    return listOf(View(near(width, height)))
}

private inline fun scaled(width: Int, height: Int, unit: Int, near: (Long, Long) -> ResizeTo): List<View> {
    if (minOf(width, height) >= unit) return native(width.toLong(), height.toLong(), near)
    val scale = maxOf(unit / height.toDouble(), unit / width.toDouble())
    return native((width * scale).toLong(), (height * scale).toLong(), near)
}
