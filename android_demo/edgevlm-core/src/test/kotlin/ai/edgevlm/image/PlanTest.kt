package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Numbers
import ai.edgevlm.Vectors
import ai.edgevlm.floats
import ai.edgevlm.int
import ai.edgevlm.obj
import ai.edgevlm.objects
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows

/** Random sizes by rules of every kind, resizes, and what becomes of transparency and orientation: Python's own. */
class PlanTest {
    private val vectors = Vectors.json("android_demo/vectors/inputs.json")

    @TestFactory
    fun `plans of random sizes are Python's`(): List<DynamicTest> = vectors["plans"].objects().map { case ->
        dynamicTest("${case["rule"]}") {
            val numbers = Numbers(case["seed"] as Long)
            val half = listOf(0.5, 0.5, 0.5)
            val rule = readRule(case["rule"], "rule")
            val spec = ImageSpec(2, rule, Resample.BICUBIC, Color(255, 255, 255), 1 / 255.0, half, half, 8)
            val texts = List(100) {
                val width = numbers.side()
                val height = numbers.side()
                val budget = if (numbers.below(3) > 0) 1 + numbers.below(20) else null
                planned(spec, width, height, budget)
            }
            val found = texts.chunked(20).map { Vectors.sha(it.joinToString("\n").toByteArray()) }
            assertEquals(case["refused"].int(), texts.count { it == "refused" })
            assertEquals(case["plans"], found, texts.joinToString("\n"))
        }
    }

    @TestFactory
    fun `random resizes are Pillow's`(): List<DynamicTest> = vectors["resizes"].objects().map { case ->
        val filter = Resample.entries.first { it.id == case["resample"] }
        dynamicTest(filter.id) {
            val numbers = Numbers(case["seed"] as Long)
            val found = List(6) {
                val results = List(10) {
                    val most = intArrayOf(9, 60, 300)
                    val (width, height, wide, high) = List(4) { 1 + numbers.below(most[numbers.below(3)]) }
                    filter.resize(Vectors.picture(width, height), wide, high).bytes
                }
                Vectors.sha(results)
            }
            assertEquals(case["results"], found)
        }
    }

    @Test
    fun `logarithms are Python's`() {
        val grids = (1..257).flatMap { columns -> (1..257 / columns).map { columns / it.toDouble() } }
        val shapes = grids + listOf(3.0, 1e-5, 65535.0, 4 / 3.0, 0.999)
        assertEquals(vectors["logarithms"], Vectors.sha(Vectors.bytes(shapes.map(Logarithm::of).toDoubleArray())))
    }

    @Test
    fun `transparency is composited as by Pillow`() {
        val rgba = ByteArray(256 * 256 * 4)
        for (i in 0 until 256 * 256) {
            val value = (i % 256).toByte()
            rgba[4 * i] = value
            rgba[4 * i + 1] = (255 - i % 256).toByte()
            rgba[4 * i + 2] = value
            rgba[4 * i + 3] = (i / 256).toByte()
        }
        for (case in vectors["conversions"].obj()["over"].objects()) {
            val (red, green, blue) = case["background"].floats().map { it.toInt() }
            val found = RgbImage.over(Color(red, green, blue), 256, 256, rgba)
            assertEquals(case["sha256"], Vectors.sha(found.bytes))
        }
    }

    @Test
    fun `orientations are those of EXIF`() {
        val picture = Vectors.picture(31, 17)
        val found = (2..8).map { Vectors.sha(picture.oriented(it).bytes) }
        assertEquals(vectors["conversions"].obj()["oriented"], found)
        for (tag in listOf(0, 1, 9, -1)) assertEquals(picture, picture.oriented(tag))
    }

    @Test
    fun `a picture of 89 megapixels is cut in a moment`() {
        val picture = RgbImage.filled(9459, 9459, Color(250, 3, 77))
        val half = listOf(0.5, 0.5, 0.5)
        for (filter in listOf(Resample.LANCZOS, Resample.BICUBIC_PLAIN)) {
            val rule = TilesThenWhole(512, 2048, 4096, 2, true)
            val spec = ImageSpec(2, rule, filter, Color.BLACK, 1 / 255.0, half, half, 4)
            val views = spec.cut(picture, spec.plan(9459, 9459))
            assertEquals(17, views.size)
            for (view in views) assertArrayEquals(RgbImage.filled(512, 512, Color(250, 3, 77)).bytes, view.bytes)
        }
    }

    @Test
    fun `what is no picture, or too large, is refused before anything is made`() {
        val one = RgbImage(1, 1, ByteArray(3))
        assertThrows<EdgeVLMException.ImageError> { RgbImage(0, 1, ByteArray(0)) }
        assertThrows<EdgeVLMException.ImageError> { RgbImage(2, 2, ByteArray(11)) }
        assertThrows<EdgeVLMException.ImageError> { RgbImage(65535, 65535, ByteArray(0)) }
        assertThrows<EdgeVLMException.ImageError> { RgbImage.over(Color.BLACK, 1 shl 16, 1 shl 16, ByteArray(0)) }
        for (filter in Resample.entries) {
            assertThrows<EdgeVLMException.ImageError> { filter.resize(one, 40_000, 40_000) }
            assertThrows<EdgeVLMException.ImageError> { filter.resize(one, 0, 1) }
        }
        val half = listOf(0.5, 0.5, 0.5)
        val spec = ImageSpec(2, Crop(336, 336), Resample.BICUBIC, Color.BLACK, 1.0, half, half, 14)
        assertThrows<EdgeVLMException.ImageError> { spec.plan(1, 16_000_000) }
        assertThrows<EdgeVLMException.ImageError> { spec.plan(0, 5) }
        assertThrows<EdgeVLMException.ImageError> { spec.plan(Int.MAX_VALUE, Int.MAX_VALUE) }
        assertThrows<EdgeVLMException> { spec.plan(5, 5, 0) }
    }
}

/** A plan in words, as `make_input_vectors.py` has it. */
internal fun planned(spec: ImageSpec, width: Int, height: Int, budget: Int?): String = try {
    val views = spec.plan(width, height, budget)
    val tokens = spec.viewTokens(views, width, height).joinToString(" ") { "${it.rows}x${it.columns}" }
    "${views.joinToString(" ", transform = ::text)} = $tokens"
} catch (_: EdgeVLMException) {
    "refused"
}

private fun text(view: View): String =
    view.steps.joinToString(">", transform = ::text) + (view.place?.let { "@${it.row},${it.column}" } ?: "")

private fun text(step: Step): String {
    val size = "${step.width}x${step.height}"
    return when (step) {
        is ResizeTo -> "r$size${step.resample?.id ?: ""}"
        is PadTo -> "p$size+${step.left}+${step.top}#" + step.color.run { "$red,$green,$blue" }
        is CropTo -> "c$size+${step.left}+${step.top}"
        is Sheet -> "s${step.columns}[${step.parts.joinToString(" ", transform = ::text)}]"
    }
}
