package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import ai.edgevlm.int
import ai.edgevlm.ints
import ai.edgevlm.obj
import ai.edgevlm.objects
import java.util.Base64
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows

/** The golden vectors, which come from transformers and Pillow: every one, bit for bit. */
class GoldenTest {
    @Test
    fun `raw pictures are the files`() {
        for (case in Vectors.json("tests/vectors/rgb_raw.json")["cases"].objects()) {
            val picture = Vectors.png("tests/vectors/rgb/${case["file"]}")
            assertEquals(listOf(case["width"].int(), case["height"].int()), listOf(picture.width, picture.height))
            assertEquals(case["sha256"], Vectors.sha256(picture.bytes))
        }
    }

    @Test
    fun `single resizes are Pillow's`() {
        val cases = Vectors.json("tests/vectors/resample.json")["cases"].objects()
        assertTrue(cases.size > 20)
        for (case in cases) {
            val (width, height) = case["from"].ints()
            val (wide, high) = case["to"].ints()
            val filter = Resample.entries.first { it.id == case["resample"] }
            val picture = RgbImage(width, height, Base64.getDecoder().decode(case["input"] as String))
            val expected = Base64.getDecoder().decode(case["output"] as String)
            val found = filter.resize(picture, wide, high).bytes
            assertArrayEquals(expected, found, "$filter $width x $height to $wide x $high")
        }
    }

    @Test
    fun `plans are the processors'`() {
        val vectors = Vectors.json("tests/vectors/plan.json")
        val specs = vectors["specs"].obj().mapValues { readImageSpec(it.value) }
        val cases = vectors["cases"] as List<*>
        for (case in cases) {
            val (name, width, height, budget, resizes) = case as List<*>
            val views = specs.getValue(name as String).plan(width.int(), height.int(), (budget as Long?)?.toInt())
            assertEquals(listOf(resizes, case[5]), listOf(resizes(views), grid(views)), "$case")
        }
    }

    private fun resizes(views: List<View>): List<List<Long>> =
        views[0].steps.filterIsInstance<ResizeTo>().map { listOf(it.width.toLong(), it.height.toLong()) }

    private fun grid(views: List<View>): List<Long> {
        val places = views.mapNotNull { it.place }
        return listOf(places.maxOfOrNull { it.row } ?: 0, places.maxOfOrNull { it.column } ?: 0).map { it.toLong() }
    }

    @TestFactory
    fun `pictures are preprocessed as by transformers`(): List<DynamicTest> {
        val vectors = Vectors.json("tests/vectors/preprocess.json")
        val specs = vectors["specs"].obj().mapValues { readImageSpec(it.value) }
        return vectors["cases"].objects().groupBy { it["image"] as String }.map { (image, cases) ->
            dynamicTest(image) {
                val picture = Vectors.png("tests/vectors/rgb/$image.png")
                for (case in cases) preprocessed(specs.getValue(case["spec"] as String), picture, case)
            }
        }
    }

    private fun preprocessed(spec: ImageSpec, picture: RgbImage, case: Map<String, Any?>) {
        val planned = spec.plan(picture.width, picture.height, (case["max_tiles"] as Long?)?.toInt())
        assertEquals(listOf(case["resizes"], case["grid"]), listOf(resizes(planned), grid(planned)))
        val views = spec.cut(picture, planned)
        assertEquals(case["tiles"].int(), views.size)
        assertEquals(case["uint8_sha256"], Vectors.sha256(views.map { it.bytes }))
        val pixels = views.map(spec::normalize)
        assertEquals(case["float32_sha256"], Vectors.sha256(pixels.map(Vectors::bytes)))
        for (value in case["values"] as List<*>) {
            val (tile, channel, y, x) = (value as List<*>).take(4).ints()
            val view = views[tile]
            val found = pixels[tile][(channel * view.height + y) * view.width + x]
            assertEquals((value[4] as Number).toFloat(), found)
        }
    }

    @TestFactory
    fun `views are the families' own processors'`(): List<DynamicTest> {
        val vectors = Vectors.json("tests/vectors/views.json")
        for (picture in vectors["pictures"] as List<*>) {
            val (width, height, digest) = picture as List<*>
            assertEquals(digest, Vectors.sha256(Vectors.picture(width.int(), height.int()).bytes))
        }
        return vectors["cases"].objects().groupBy { it["spec"] as String }.map { (name, cases) ->
            dynamicTest(name) {
                val (rule, token) = RULES.getValue(name)
                for (case in cases) viewed(spec(rule, filter(rule), token), case)
            }
        }
    }

    @TestFactory
    fun `views are what the gate replays`(): List<DynamicTest> =
        Vectors.json("edgevlm/assets/views.json").map { (kind, recorded) ->
            dynamicTest(kind) {
                val filter = Resample.entries.first { it.id == recorded.obj()["resample"] }
                val rule = readRule(recorded.obj()["rule"], "views.json")
                for (case in recorded.obj()["cases"].objects()) viewed(spec(rule, filter, null), case)
            }
        }

    private fun viewed(spec: ImageSpec, case: Map<String, Any?>) {
        val (width, height) = listOf(case["width"].int(), case["height"].int())
        val what = "${case["spec"]} $width x $height"
        if ("refused" in case) {
            assertThrows<EdgeVLMException.ImageError>(what) { spec.plan(width, height) }
            return
        }
        val planned = spec.plan(width, height)
        val sizes = (case["sizes"] as List<*>?)?.map { it.ints() } ?: List(case["views"].int()) { case["size"].ints() }
        assertEquals(sizes, planned.map { listOf(it.width, it.height) }, what)
        if (spec.tokens == null) {
            assertEquals(case["tokens"].int(), planned.sumOf { spec.tokenGrid(it).size }, what)
        }
        val places = planned.mapNotNull { it.place }
        if ("tiles" in case && planned.size > 1) {
            val (rows, columns) = case["tiles"].ints()
            assertEquals((1..rows).flatMap { row -> (1..columns).map { Place(row, it) } }, places, what)
        }
        val views = spec.cut(Vectors.picture(width, height), planned).toMutableList()
        assertEquals(sizes, views.map { listOf(it.width, it.height) }, what)
        case["whole"]?.let { views.removeAt(it.int()) } // its pixels are not recorded
        assertEquals(case["sha256"], Vectors.sha256(views.map { it.bytes }), what)
    }

    private fun filter(rule: Rule) = if (rule is TilesThenWhole) Resample.LANCZOS else Resample.BICUBIC

    private fun spec(rule: Rule, filter: Resample, token: Int?): ImageSpec {
        val half = listOf(0.5, 0.5, 0.5)
        val tokens = if (token == null) 1 else null
        return ImageSpec(2, rule, filter, Color(255, 255, 255), 1 / 255.0, half, half, token, tokens)
    }

    private companion object {
        val CLIP = Color(122, 116, 104)
        val GREY = Color(127, 127, 127)
        val GRIDS = listOf(1 to 1, 1 to 2, 2 to 1, 2 to 2, 3 to 1, 1 to 3, 3 to 3).map { Place(it.first, it.second) }

        /** What the processors' settings in views.json are as rules, and the pixels per side of an image token. */
        val RULES: Map<String, Pair<Rule, Int>> = mapOf(
            "clip_crop" to (Crop(336, 336) to 14),
            "clip_crop_small" to (Crop(48, 48) to 8),
            "llava_pad" to (Pad(336, CLIP) to 14),
            "llava_pad_small" to (Pad(48, CLIP) to 8),
            "internvl" to (RatioTiles(448, 1, 12, true) to 28),
            "internvl_small" to (RatioTiles(48, 1, 6, true) to 16),
            "qwen2_5_vl" to (Native(28, 56 * 56, 28 * 28 * 1280) to 28),
            "qwen3_vl" to (Native(32, 65536, 16777216) to 32),
            "qwen_small" to (Native(16, 4 * 256, 40 * 256) to 16),
            "paddleocr_vl" to (NativeGrown(28, 384 * 384, 1536 * 1536) to 28),
            "paddleocr_vl_small" to (NativeGrown(16, 4 * 256, 40 * 256) to 16),
            "gemma4" to (Filled(48, 280) to 48),
            "gemma4_small" to (Filled(12, 70) to 12),
            "glm4v" to (NativeScaled(28, 112 * 112 / 2, 28 * 28 * 15000 / 2) to 28),
            "glm4v_small" to (NativeScaled(16, 4 * 256, 40 * 256) to 16),
            "deepseek_vl" to (Fit(384, 14, GREY) to 16),
            "deepseek_vl_small" to (Fit(48, 14, CLIP) to 8),
            "idefics3" to (TilesThenWhole(364, 1456, 4096, 2, true) to 28),
            "idefics3_small" to (TilesThenWhole(48, 192, 4096, 2, true) to 16),
            "llava_onevision" to (BestGrid(384, GRIDS) to 14),
            "llava_onevision_small" to (BestGrid(48, GRIDS) to 8),
            "ovis2" to (CoveringTiles(448, 12) to 28),
            "ovis2_small" to (CoveringTiles(48, 6) to 16),
            "mistral3" to (Within(28, 1540) to 28),
            "pixtral_small" to (Within(16, 512) to 16),
            "siglip" to (Stretch(384) to 14),
            "siglip_small" to (Stretch(48) to 8),
        )
    }
}
