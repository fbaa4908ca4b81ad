package ai.edgevlm.android

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.Plane
import ai.edgevlm.image.RgbImage
import ai.edgevlm.image.YuvImage
import android.graphics.ImageFormat
import android.media.Image

/** Frames of Android's cameras. CameraX's `ImageProxy` has the same planes, and `imageInfo.rotationDegrees` for [toRgb]. */
public object Frames {
    /**
     * A frame of an `ImageReader` in YUV_420_888, the part that it shows, turned clockwise by [rotation] degrees. It is read
     * at once, and may be closed then.
     */
    public fun toRgb(image: Image, rotation: Int): RgbImage {
        if (image.format != ImageFormat.YUV_420_888) {
            throw EdgeVLMException.ImageError("The frame has the format ${image.format}: set the ImageReader to ImageFormat.YUV_420_888.")
        }
        val (y, u, v) = image.planes.map { Plane(it.buffer, it.rowStride, it.pixelStride) }
        val shown = image.cropRect
        return YuvImage(image.width, image.height, y, u, v)
            .toRgb(rotation, YuvImage.Crop(shown.left, shown.top, shown.width(), shown.height()))
    }
}
