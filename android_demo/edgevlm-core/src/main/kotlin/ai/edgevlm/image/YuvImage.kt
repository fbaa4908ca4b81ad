package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import java.nio.ByteBuffer

/** One plane of a camera's frame: its bytes from the buffer's beginning, [rowStride] from row to row, [pixelStride] from sample to sample. */
public class Plane(public val buffer: ByteBuffer, public val rowStride: Int, public val pixelStride: Int)

/**
 * A camera's frame in YUV 4:2:0 with 8 bits, as Android's `YUV_420_888` has it: one [u] and one [v] for two by two pixels of [y].
 *
 * Throws [EdgeVLMException.ImageError] where a plane is too short for its size.
 */
public class YuvImage(public val width: Int, public val height: Int, private val y: Plane, private val u: Plane, private val v: Plane) {
    init {
        if (width < 1 || height < 1) throw EdgeVLMException.ImageError("A frame of $width x $height has no pixel: give one that has.")
        check("Y", y, width, height)
        for ((name, plane) in listOf("U" to u, "V" to v)) check(name, plane, (width + 1) / 2, (height + 1) / 2)
    }

    /**
     * The frame as a picture: the [crop] of it, turned clockwise by [rotation] degrees (a multiple of 90).
     *
     * Colours are JFIF's (BT.601, full range), in the 16-bit arithmetic of libjpeg's decoder: at most 0.502 off the exact
     * value, and 1 off Pillow's `convert("RGB")`, which cuts. A chroma sample stands for its pixels as it is.
     */
    public fun toRgb(rotation: Int = 0, crop: Crop = Crop(0, 0, width, height)): RgbImage {
        val inside = crop.left >= 0 && crop.top >= 0 && crop.width > 0 && crop.height > 0 &&
            crop.left.toLong() + crop.width <= width && crop.top.toLong() + crop.height <= height
        if (!inside) throw EdgeVLMException.ImageError("$crop is not inside a frame of $width x $height: give a part of it.")
        val tag = ORIENTATIONS[((rotation % 360) + 360) % 360]
            ?: throw EdgeVLMException.ImageError("A frame cannot be turned by $rotation degrees: give 0, 90, 180 or 270.")
        if (crop.width.toLong() * crop.height > RgbImage.MAX_PIXELS) {
            throw EdgeVLMException.ImageError("A frame of ${crop.width} x ${crop.height} is too large: crop it.")
        }
        val out = ByteArray(crop.width * crop.height * 3)
        var to = 0
        for (row in crop.top until crop.top + crop.height) {
            for (column in crop.left until crop.left + crop.width) {
                val light = at(y, row, column)
                val blue = at(u, row / 2, column / 2) - 128
                val red = at(v, row / 2, column / 2) - 128
                out[to++] = clipped(light + ((91881 * red + HALF) shr 16))
                out[to++] = clipped(light + ((-22554 * blue - 46802 * red + HALF) shr 16))
                out[to++] = clipped(light + ((116130 * blue + HALF) shr 16))
            }
        }
        return RgbImage(crop.width, crop.height, out).oriented(tag)
    }

    /** A part of a frame before it is turned, in pixels. */
    public data class Crop(val left: Int, val top: Int, val width: Int, val height: Int)

    private fun at(plane: Plane, row: Int, column: Int): Int = plane.buffer.get(row * plane.rowStride + column * plane.pixelStride).toInt() and 255

    private fun clipped(value: Int): Byte = value.coerceIn(0, 255).toByte()

    private fun check(name: String, plane: Plane, wide: Int, high: Int) {
        val last = (high - 1L) * plane.rowStride + (wide - 1L) * plane.pixelStride
        if (plane.rowStride > 0 && plane.pixelStride > 0 && last < plane.buffer.limit()) return
        throw EdgeVLMException.ImageError(
            "The plane $name of a frame of $width x $height has ${plane.buffer.limit()} bytes, expected ${last + 1} by its strides " +
                "${plane.rowStride} and ${plane.pixelStride}: give the camera's own numbers.",
        )
    }

    private companion object {
        const val HALF = 1 shl 15
        val ORIENTATIONS = mapOf(0 to 1, 90 to 6, 180 to 3, 270 to 8)
    }
}
