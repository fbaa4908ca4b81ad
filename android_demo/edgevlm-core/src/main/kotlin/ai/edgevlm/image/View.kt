package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException

/** Row and column of a tile, from 1. */
public data class Place(val row: Int, val column: Int)

/** One step from a picture to a view; [width] and [height] are of what comes out. */
public sealed interface Step {
    public val width: Int
    public val height: Int
}

/** [resample]: null is the spec's own. */
public data class ResizeTo(override val width: Int, override val height: Int, val resample: Resample? = null) : Step

/** The picture on a larger canvas of one color, its corner at ([left], [top]). */
public data class PadTo(
    override val width: Int,
    override val height: Int,
    val left: Int,
    val top: Int,
    val color: Color,
) : Step

public data class CropTo(val left: Int, val top: Int, override val width: Int, override val height: Int) : Step

/**
 * Square views of a picture side by side as one: the first at the left of the first row, which is black otherwise, and
 * the others in rows of [columns] below.
 */
public data class Sheet(val parts: List<View>, val columns: Int) : Step {
    override val width: Int get() = columns * parts[0].width
    override val height: Int get() = (1 + (parts.size - 1) / columns) * parts[0].width
}

/** What an encoder sees at once. [steps]: at least one, from the picture on. [place]: of a tile; null is all of it. */
public data class View(val steps: List<Step>, val place: Place? = null) {
    internal constructor(vararg steps: Step) : this(steps.toList())

    public val width: Int get() = steps.last().width
    public val height: Int get() = steps.last().height
}

/** The [views] of a [picture]. Steps that several views begin with run once. */
internal fun cut(picture: RgbImage, views: List<View>, resample: Resample): List<RgbImage> =
    Cutter(picture, views, resample).let { cutter -> views.map { cutter.run(it.steps) } }

private class Cutter(private val picture: RgbImage, views: List<View>, private val resample: Resample) {
    private val uses = HashMap<List<Step>, Int>()
    private val made = HashMap<List<Step>, RgbImage>()

    init {
        for (view in views) {
            for (n in 1 until view.steps.size) uses[view.steps.take(n)] = (uses[view.steps.take(n)] ?: 0) + 1
        }
    }

    fun run(steps: List<Step>): RgbImage {
        if (steps.isEmpty()) return picture
        made[steps]?.let { return it }
        val result = apply(steps.last(), run(steps.dropLast(1)))
        if ((uses[steps] ?: 0) > 1) made[steps] = result
        return result
    }

    private fun apply(step: Step, before: RgbImage): RgbImage = when (step) {
        is ResizeTo -> (step.resample ?: resample).resize(before, step.width, step.height)
        is PadTo -> RgbImage.filled(step.width, step.height, step.color).also { it.paste(before, step.left, step.top) }
        is CropTo -> before.crop(step.left, step.top, step.width, step.height)
        is Sheet -> sheet(step, before)
    }

    private fun sheet(sheet: Sheet, before: RgbImage): RgbImage {
        val canvas = RgbImage.filled(sheet.width, sheet.height, Color.BLACK)
        val side = sheet.parts[0].width
        cut(before, sheet.parts, resample).forEachIndexed { number, part ->
            val at = number - 1
            val row = if (number == 0) 0 else 1 + at / sheet.columns
            canvas.paste(part, (if (number == 0) 0 else at % sheet.columns) * side, row * side)
        }
        return canvas
    }
}

/** Refuse views of which a step makes more pixels than a picture may have, before any is made. */
internal fun checkPixels(views: List<View>, width: Int, height: Int) {
    val seen = HashSet<Step>()
    for (step in views.flatMap { it.steps }) {
        if (step is CropTo || !seen.add(step)) continue
        if (step is Sheet) checkPixels(step.parts, width, height)
        if (step.width.toLong() * step.height > RgbImage.MAX_PIXELS) throw tooManyPixels(width, height, step)
    }
}

private fun tooManyPixels(width: Int, height: Int, step: Step) = EdgeVLMException.ImageError(
    "A picture of $width x $height would become ${step.width} x ${step.height} pixels, at most 89.5 million are " +
        "made: cut it into less elongated pieces first.",
)
