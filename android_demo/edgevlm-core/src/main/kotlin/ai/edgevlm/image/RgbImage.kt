package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException

/**
 * A picture of 8 bits: [bytes] has rows from the top, pixels from the left, and of each pixel R, G, B.
 *
 * The bytes are not copied: who changes them changes the picture. Throws [EdgeVLMException.ImageError] where their
 * number is not `width * height * 3`, or a picture has no pixel or more than [MAX_PIXELS].
 */
public class RgbImage(public val width: Int, public val height: Int, public val bytes: ByteArray) {
    init {
        checkSize(width, height)
        if (bytes.size != width * height * 3) {
            throw EdgeVLMException.ImageError(
                "A picture of $width x $height pixels came with ${bytes.size} bytes, expected ${width * height * 3}: " +
                    "give R, G and B of every pixel, row by row.",
            )
        }
    }

    /** The part of [width] x [height] pixels whose upper left corner is ([left], [top]); it lies inside. */
    internal fun crop(left: Int, top: Int, width: Int, height: Int): RgbImage {
        val fits = left.toLong() + width <= this.width && top.toLong() + height <= this.height
        if (minOf(left, top) < 0 || minOf(width, height) < 1 || !fits) {
            throw EdgeVLMException.ImageError(
                "A view would be cut out of a picture of ${this.width} x ${this.height} where none of it is: give a " +
                    "larger or less elongated picture.",
            )
        }
        if (width == this.width && height == this.height) return this
        val out = ByteArray(width * height * 3)
        for (y in 0 until height) {
            val start = ((top + y) * this.width + left) * 3
            System.arraycopy(bytes, start, out, y * width * 3, width * 3)
        }
        return RgbImage(width, height, out)
    }

    /** Put [picture] on this one, its upper left corner at ([left], [top]); it fits. */
    internal fun paste(picture: RgbImage, left: Int, top: Int) {
        require(left >= 0 && top >= 0 && left + picture.width <= width && top + picture.height <= height)
        for (y in 0 until picture.height) {
            val start = ((top + y) * width + left) * 3
            System.arraycopy(picture.bytes, y * picture.width * 3, bytes, start, picture.width * 3)
        }
    }

    /**
     * The upright picture that EXIF's orientation [tag] (0x0112) makes of this one; values that are none change
     * nothing.
     */
    public fun oriented(tag: Int): RgbImage {
        if (tag !in 2..8) return this
        val turned = tag >= 5
        val wide = if (turned) height else width
        val high = if (turned) width else height
        val out = ByteArray(bytes.size)
        var to = 0
        for (y in 0 until high) {
            for (x in 0 until wide) {
                val across = if (turned) y else x
                val down = if (turned) x else y
                val column = if (tag == 2 || tag == 3 || tag == 7 || tag == 8) width - 1 - across else across
                val row = if (tag == 3 || tag == 4 || tag == 6 || tag == 7) height - 1 - down else down
                val from = (row * width + column) * 3
                out[to++] = bytes[from]
                out[to++] = bytes[from + 1]
                out[to++] = bytes[from + 2]
            }
        }
        return RgbImage(wide, high, out)
    }

    public companion object {
        /** The most pixels of a picture, as in Python: about where a decoder's memory becomes a gigabyte. */
        public const val MAX_PIXELS: Int = 89_478_485

        /** A picture of one color, 0xRRGGBB. */
        internal fun filled(width: Int, height: Int, color: Color): RgbImage {
            checkSize(width, height)
            val bytes = ByteArray(width * height * 3)
            val one = byteArrayOf(color.red.toByte(), color.green.toByte(), color.blue.toByte())
            if (color != Color.BLACK) for (i in bytes.indices) bytes[i] = one[i % 3]
            return RgbImage(width, height, bytes)
        }

        /**
         * A picture with transparency over one [background], in the 8-bit arithmetic of Pillow's `alpha_composite`.
         *
         * [rgba]: R, G, B and A of every pixel, row by row, R, G and B not multiplied by A.
         */
        public fun over(background: Color, width: Int, height: Int, rgba: ByteArray): RgbImage {
            checkSize(width, height)
            if (rgba.size.toLong() != width * height * 4L) {
                throw EdgeVLMException.ImageError(
                    "A picture of $width x $height pixels with transparency came with ${rgba.size} bytes, expected " +
                        "${width * height * 4L}: give R, G, B and A of every pixel, row by row.",
                )
            }
            val out = ByteArray(width * height * 3)
            val under = intArrayOf(background.red, background.green, background.blue)
            var to = 0
            for (from in rgba.indices step 4) {
                val front = (rgba[from + 3].toInt() and 255) * 128
                for (c in 0 until 3) {
                    val mixed = (rgba[from + c].toInt() and 255) * front + under[c] * (255 * 128 - front) + (128 shl 7)
                    out[to++] = ((((mixed shr 8) + mixed) shr 8) shr 7).toByte()
                }
            }
            return RgbImage(width, height, out)
        }

        private fun checkSize(width: Int, height: Int) {
            if (width < 1 || height < 1) {
                throw EdgeVLMException.ImageError("A picture of $width x $height has no pixel: give one that has.")
            }
            if (width.toLong() * height > MAX_PIXELS) {
                throw EdgeVLMException.ImageError(
                    "A picture of $width x $height has more than ${MAX_PIXELS / 1_000_000} million pixels: scale it " +
                        "down first.",
                )
            }
        }
    }
}

/** An opaque color; each channel from 0 to 255. */
public data class Color(val red: Int, val green: Int, val blue: Int) {
    internal companion object {
        val BLACK = Color(0, 0, 0)
    }
}
