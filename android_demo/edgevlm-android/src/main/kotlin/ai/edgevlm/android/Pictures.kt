package ai.edgevlm.android

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.Color
import ai.edgevlm.image.Exif
import ai.edgevlm.image.RgbImage
import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.ColorSpace
import android.net.Uri
import java.io.ByteArrayOutputStream
import java.io.IOException

/**
 * Android's pictures as the SDK's. All calls take their time: make them on another thread than the main one.
 *
 * Colours are converted to sRGB, which Python does not do: a photograph in Display P3 is the same picture, and not the same
 * numbers. Transparent parts show [Color], the bundle's `imageSpec.background`.
 */
public object Pictures {
    private const val MAX_BYTES = 512 shl 20

    /** A picture file, turned upright. Throws [EdgeVLMException.ImageError] for what is none. */
    public fun decode(file: ByteArray, background: Color): RgbImage {
        val options = BitmapFactory.Options()
        options.inJustDecodeBounds = true
        BitmapFactory.decodeByteArray(file, 0, file.size, options)
        if (options.outWidth < 1 || options.outHeight < 1) throw EdgeVLMException.ImageError("This is no picture that Android opens: use JPEG, PNG or WebP.")
        if (options.outWidth.toLong() * options.outHeight > RgbImage.MAX_PIXELS) {
            throw EdgeVLMException.ImageError("A picture of ${options.outWidth} x ${options.outHeight} is too large: scale it down first.")
        }
        options.inJustDecodeBounds = false
        options.inPreferredConfig = Bitmap.Config.ARGB_8888
        options.inPreferredColorSpace = ColorSpace.get(ColorSpace.Named.SRGB)
        options.inPremultiplied = false // what is multiplied by its transparency has lost bits
        options.inScaled = false
        val bitmap = inMemory { BitmapFactory.decodeByteArray(file, 0, file.size, options) }
            ?: throw EdgeVLMException.ImageError("The picture is damaged: take another.")
        try {
            return inMemory { of(bitmap, background).oriented(Exif.orientation(file)) }
        } finally {
            bitmap.recycle()
        }
    }

    /** What a [uri] of a gallery, a camera or another app leads to. */
    public fun read(resolver: ContentResolver, uri: Uri, background: Color): RgbImage {
        val file = try {
            val stream = resolver.openInputStream(uri) ?: throw EdgeVLMException.ImageError("The picture '$uri' is not there any more: take another.")
            stream.use { from ->
                val out = ByteArrayOutputStream()
                val buffer = ByteArray(1 shl 16)
                while (true) {
                    val count = from.read(buffer)
                    if (count < 0) break
                    if (out.size() > MAX_BYTES - count) throw EdgeVLMException.ImageError("The picture '$uri' has more than $MAX_BYTES bytes: scale it down first.")
                    inMemory { out.write(buffer, 0, count) }
                }
                inMemory { out.toByteArray() }
            }
        } catch (error: IOException) {
            throw EdgeVLMException.ImageError("The picture '$uri' cannot be read (${error.message?.take(200)}): take another.", error)
        } catch (error: SecurityException) {
            throw EdgeVLMException.ImageError("The app may not read the picture '$uri': ask for it again.", error)
        }
        return decode(file, background)
    }

    /** A bitmap of any configuration, as it is: it has no EXIF. */
    public fun of(bitmap: Bitmap, background: Color): RgbImage {
        if (bitmap.isRecycled) throw EdgeVLMException.ImageError("The bitmap was recycled: give one that was not.")
        val width = bitmap.width
        val height = bitmap.height
        if (width.toLong() * height > RgbImage.MAX_PIXELS) throw EdgeVLMException.ImageError("A bitmap of $width x $height is too large: scale it down first.")
        if (bitmap.config != Bitmap.Config.ARGB_8888) { // those in graphics memory have no pixels to get
            val copy = inMemory { bitmap.copy(Bitmap.Config.ARGB_8888, false) } ?: throw EdgeVLMException.ImageError("The bitmap cannot be copied: give one in ARGB_8888.")
            try {
                return rgb(copy, background)
            } finally {
                copy.recycle()
            }
        }
        return inMemory { rgb(bitmap, background) }
    }

    /** getPixels gives sRGB that is not multiplied by its transparency, whatever the bitmap has. */
    private fun rgb(bitmap: Bitmap, background: Color): RgbImage {
        val width = bitmap.width
        val height = bitmap.height
        val channels = if (bitmap.hasAlpha()) 4 else 3
        if (width.toLong() * height * channels > Int.MAX_VALUE) throw EdgeVLMException.ImageError("A bitmap of $width x $height is too large: scale it down first.")
        val bytes = ByteArray(width * height * channels)
        val row = IntArray(width)
        var to = 0
        for (y in 0 until height) {
            bitmap.getPixels(row, 0, width, 0, y, width, 1)
            for (pixel in row) {
                bytes[to++] = (pixel shr 16).toByte()
                bytes[to++] = (pixel shr 8).toByte()
                bytes[to++] = pixel.toByte()
                if (channels == 4) bytes[to++] = (pixel ushr 24).toByte()
            }
        }
        return if (channels == 4) RgbImage.over(background, width, height, bytes) else RgbImage(width, height, bytes)
    }

    private inline fun <T> inMemory(act: () -> T): T = try {
        act()
    } catch (_: OutOfMemoryError) {
        throw EdgeVLMException.ImageError("The picture does not fit this app's memory: scale it down first.")
    }
}
