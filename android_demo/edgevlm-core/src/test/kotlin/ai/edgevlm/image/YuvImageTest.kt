package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import java.nio.ByteBuffer
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class YuvImageTest {
    private fun plane(bytes: ByteArray, rowStride: Int, pixelStride: Int = 1) = Plane(ByteBuffer.wrap(bytes), rowStride, pixelStride)

    private fun one(y: Int, u: Int, v: Int) = listOf(y, u, v).map { plane(byteArrayOf(it.toByte()), 1) }.let { (a, b, c) -> YuvImage(1, 1, a, b, c).toRgb() }

    @Test
    fun `colours are JFIF's exact ones, at most 0_502 off`() {
        // 256 x 256 of luma and one chroma, for each of the other: every triple, two samples of four pixels at a time.
        var worst = 0.0
        val luma = ByteArray(256 * 2) { (it / 2).toByte() }
        for (u in 0..255) {
            for (v in 0..255) {
                val row = YuvImage(512, 1, plane(luma, 512), plane(ByteArray(256) { u.toByte() }, 256), plane(ByteArray(256) { v.toByte() }, 256)).toRgb().bytes
                for (y in 0..255 step 5) {
                    val exact = doubleArrayOf(
                        y + 1.402 * (v - 128),
                        y - (0.114 * 1.772 * (u - 128) + 0.299 * 1.402 * (v - 128)) / 0.587,
                        y + 1.772 * (u - 128),
                    )
                    for (c in 0 until 3) worst = maxOf(worst, Math.abs((row[y * 6 + c].toInt() and 255) - exact[c].coerceIn(0.0, 255.0)))
                }
            }
        }
        assertTrue(worst <= 0.502, "$worst")
        assertArrayEquals(byteArrayOf(-1, -1, -1), one(255, 128, 128).bytes)
        assertArrayEquals(byteArrayOf(-2, 0, 0), one(76, 85, 255).bytes) // JFIF's red
    }

    /** A frame whose planes have any strides, and what plain indexing makes of it. */
    @Test
    fun `strides, odd sizes, crops and turns`() {
        val random = Random(3)
        repeat(60) {
            val width = 1 + random.nextInt(9)
            val height = 1 + random.nextInt(9)
            val wide = (width + 1) / 2
            val high = (height + 1) / 2
            val y = Random(it).nextBytes(width * height)
            val u = Random(it + 1).nextBytes(wide * high)
            val v = Random(it + 2).nextBytes(wide * high)
            fun strided(data: ByteArray, columns: Int, step: Int): Plane {
                val stride = columns * step + random.nextInt(5)
                val rows = data.size / columns
                val out = ByteArray((rows - 1) * stride + (columns - 1) * step + 1) // cameras leave out the last row's padding
                for (i in data.indices) out[i / columns * stride + i % columns * step] = data[i]
                val direct = ByteBuffer.allocateDirect(out.size).put(out)
                direct.position(random.nextInt(out.size)) // a position is no offset
                return Plane(direct, stride, step)
            }
            val frame = YuvImage(width, height, strided(y, width, 1), strided(u, wide, 2), strided(v, wide, 2))
            val left = random.nextInt(width)
            val top = random.nextInt(height)
            val crop = YuvImage.Crop(left, top, 1 + random.nextInt(width - left), 1 + random.nextInt(height - top))
            val upright = frame.toRgb(0, crop)
            for (row in 0 until crop.height) for (column in 0 until crop.width) {
                val at = (top + row) / 2 * wide + (left + column) / 2
                val pixel = one(y[(top + row) * width + left + column].toInt(), u[at].toInt(), v[at].toInt()).bytes
                val from = (row * crop.width + column) * 3
                assertArrayEquals(pixel, upright.bytes.copyOfRange(from, from + 3))
            }
            val right = frame.toRgb(90, crop)
            assertEquals(listOf(crop.height, crop.width), listOf(right.width, right.height))
            // The lower left corner comes to the upper left, turned clockwise.
            assertArrayEquals(upright.bytes.copyOfRange((crop.height - 1) * crop.width * 3, (crop.height - 1) * crop.width * 3 + 3), right.bytes.copyOf(3))
            assertArrayEquals(frame.toRgb(-90, crop).bytes, frame.toRgb(270, crop).bytes)
            assertArrayEquals(upright.bytes.toList().chunked(3).reversed().flatten().toByteArray(), frame.toRgb(180, crop).bytes)
        }
    }

    @Test
    fun `frames that are none`() {
        fun frame(width: Int = 4, height: Int = 4, y: Plane = plane(ByteArray(16), 4), u: Plane = plane(ByteArray(4), 2), v: Plane = u) = YuvImage(width, height, y, u, v)
        assertThrows<EdgeVLMException.ImageError> { frame(width = 0) }
        assertThrows<EdgeVLMException.ImageError> { frame(y = plane(ByteArray(15), 4)) }
        assertThrows<EdgeVLMException.ImageError> { frame(u = plane(ByteArray(4), 3)) }
        assertThrows<EdgeVLMException.ImageError> { frame(v = plane(ByteArray(4), -2)) }
        assertThrows<EdgeVLMException.ImageError> { frame(v = plane(ByteArray(4), 2, 0)) }
        assertThrows<EdgeVLMException.ImageError> { frame(width = Int.MAX_VALUE, height = Int.MAX_VALUE) }
        assertThrows<EdgeVLMException.ImageError> { frame().toRgb(45) }
        for (crop in listOf(YuvImage.Crop(-1, 0, 2, 2), YuvImage.Crop(0, 0, 5, 4), YuvImage.Crop(2, 2, 3, 1), YuvImage.Crop(0, 0, 0, 1), YuvImage.Crop(1, 0, Int.MAX_VALUE, 1))) {
            assertThrows<EdgeVLMException.ImageError> { frame().toRgb(0, crop) }
        }
    }
}
