package ai.edgevlm.layout

import ai.edgevlm.Numbers
import ai.edgevlm.Vectors
import ai.edgevlm.floats
import ai.edgevlm.image.Color
import ai.edgevlm.image.CropTo
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.Place
import ai.edgevlm.image.Resample
import ai.edgevlm.image.RgbImage
import ai.edgevlm.image.Stretch
import ai.edgevlm.image.View
import ai.edgevlm.image.ViewTokens
import ai.edgevlm.image.readImageSpec
import ai.edgevlm.int
import ai.edgevlm.ints
import ai.edgevlm.obj
import ai.edgevlm.objects
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

/** Prompts with pictures of tiny models of many families: everything that Python makes of them beside the graphs. */
class LayoutTest {
    private val vectors = Vectors.json("android_demo/vectors/layout.json")

    private fun told(feeds: Map<String, Tensor>): Map<String, Any> = feeds.mapValues { (_, tensor) ->
        val bytes = when (tensor) {
            is FloatTensor -> Vectors.bytes(tensor.values)
            is LongTensor -> Vectors.bytes(tensor.values)
            is BoolTensor -> Vectors.bytes(tensor.values)
        }
        Vectors.sha(listOf(tensor.shape.toList().toString().toByteArray(), bytes))
    }

    private fun sha(rows: List<Rows>): String = Vectors.sha(rows.map { Vectors.bytes(it.values) })

    @TestFactory
    fun `families' prompts are Python's`(): List<DynamicTest> = vectors["families"].objects().flatMap { family ->
        val image = readImageSpec(family["preprocess"])
        val tower = Tower.read(family["vision"], "vision")
        val decoder = Positions.read(family["decoder"], "decoder")
        val name = family["name"]
        val frames = family["frames"]?.let { dynamicTest("$name: frames") { frames(image, tower, it.obj()) } }
        listOfNotNull(frames) + family["cases"].objects().map { case ->
            dynamicTest("$name: ${case["pictures"]}") {
                val pictures = (case["pictures"] as List<*>).map { it.ints() }
                val spec = image.among(pictures.size)
                val tokens = pictures.flatMap { (width, height) ->
                    spec.viewTokens(spec.plan(width, height), width, height)
                }
                assertEquals((case["tokens"] as List<*>).map { it.ints() }, tokens.map { listOf(it.rows, it.columns) })
                val layout = layout(case, tokens, (family["canvas"] as List<*>).isNotEmpty())
                decoded(case, decoder, layout)
                packed(case, layout, family["width"].int(), decoder, family["decoder"].obj())
                pictures.zip(case["feeds"] as List<*>) { (width, height), feeds ->
                    fed(spec, tower, width, height, feeds)
                }
            }
        }
    }

    private fun layout(case: Map<String, Any?>, tokens: List<ViewTokens>, canvas: Boolean): Layout {
        val spans = (case["spans"] as List<*>).map { it.ints() }.zip(tokens) { (start, rows, columns, gap), view ->
            Span(start, Side(rows, columns), view.packed, gap)
        }
        val ids = IntArray(case["length"].int()).also { for (token in case["canvas"].ints()) it[token] = 7 }
        val laid = if (canvas) Layout.onCanvas(spans, tokens.map { it.place }, ids, setOf(7)) else spans
        assertEquals(case["behind"].ints(), laid.map { it.behind })
        return Layout(ids.size, laid)
    }

    private fun decoded(case: Map<String, Any?>, decoder: Positions, layout: Layout) {
        val found = decoder.of(layout, 0, layout.length + 3)
        assertEquals(case["positions"], Vectors.sha(found.map(Vectors::bytes)))
        for (call in case["inputs"] as List<*>) {
            val (past, new, inputs) = call as List<*>
            assertEquals(inputs, told(decoder.inputs(layout, past.int(), new.int(), padded = true)), "$past $new")
        }
        assertEquals(layout.length, unchanged(decoder, layout, layout, layout.length))
        for (cut in layout.spans.filter { it.tokens > 1 }.map { it.start + 1 }) {
            assertTrue(unchanged(decoder, layout, layout, cut) < cut)
        }
    }

    private fun packed(
        case: Map<String, Any?>,
        layout: Layout,
        width: Int,
        decoder: Positions,
        spec: Map<String, Any?>,
    ) {
        val numbers = Numbers(9)
        val features = layout.spans.flatMap { it.features }.map { Rows(numbers.features(it, width), width) }
        assertEquals(case["packed"], sha(layout.imageTokens(features)))
        val wide = width + spec["per_layer"].int() * (spec["layers"] as List<*>).size
        val embeds = Rows(numbers.features(layout.length, wide), wide)
        layout.merge(embeds, features)
        assertEquals(case["merged"], sha(listOf(embeds)))
        assertEquals(layout.spans.size, layout.behind(0).spans.size)
        assertEquals(decoder.axes, decoder.of(layout).size)
    }

    private fun fed(spec: ImageSpec, tower: Tower, width: Int, height: Int, feeds: Any?) {
        val views = spec.cut(Vectors.picture(width, height), spec.plan(width, height))
        val found = setOf(0, views.size - 1).map { told(tower.feeds(listOf(views[it]), spec)) }
        assertEquals(feeds, found)
    }

    @TestFactory
    fun `towers' heads and tables are Python's`(): List<DynamicTest> = vectors["towers"].objects().map { case ->
        val half = listOf(0.5, 0.5, 0.5)
        val spec = ImageSpec(2, Stretch(8), Resample.BICUBIC, Color(0, 0, 0), 1 / 255.0, half, half, 1)
        val tower = Tower.read(case["vision"], "vision")
        dynamicTest("$tower") {
            val (width, height) = case["size"].ints()
            assertEquals(case["feeds"], told(tower.feeds(listOf(Vectors.picture(width, height)), spec)))
        }
    }

    private fun frames(spec: ImageSpec, tower: Tower, feeds: Map<String, Any?>) {
        val picture = Vectors.picture(64, 64)
        val below = picture.oriented(4)
        val count = (tower as PatchTower).frames
        assertEquals(feeds, told(tower.feeds(List(count) { if (it % 2 == 0) picture else below }, spec)))
    }

    @Test
    fun `parts of prompts, masks and common beginnings are Python's`() {
        for (case in vectors["prompts"].objects()) {
            val mask = Positions.Mask.valueOf((case["mask"] as String).uppercase())
            val places = Positions.Places.valueOf((case["places"] as String).uppercase())
            val sections = if (case["axes"].int() == 3) listOf(2, 2, 2) else emptyList()
            val d = Positions(mapOf("main" to Rope(1e4, 12, sections = sections)), mask, places = places)
            val (old, new) = (case["layouts"] as List<*>).map { told ->
                val (length, spans) = told as List<*>
                Layout(length.int(), (spans as List<*>).map { span ->
                    val (start, rows, columns) = (span as List<*>).take(3).ints()
                    Span(start, Side(rows, columns), behind = span[4].int())
                })
            }
            assertEquals(case["kept"].int(), unchanged(d, old, new, case["length"].int()), "$case")
            val ends = ArrayList<Int>()
            while ((ends.lastOrNull() ?: 0) < old.length) {
                ends += nextPart(old, mask, ends.lastOrNull() ?: 0, old.length, case["most"].int())
            }
            assertEquals(case["ends"].ints(), ends, "$case")
            val past = old.length / 3
            val seen = visible(old, mask, past, old.length - past, (case["window"] as Long?)?.toInt())
            assertEquals(case["seen"], Vectors.sha(Vectors.bytes(seen)), "$case")
        }
    }

    @Test
    fun `positions on canvases are Python's`() {
        val numbers = Numbers(91)
        val d = Positions(mapOf("main" to Rope(1e4, 12, sections = listOf(2, 2, 2))), places = Positions.Places.CANVAS)
        val found = List(150) {
            var at = 1 + numbers.below(4)
            val spans = ArrayList<Span>()
            repeat(1 + numbers.below(2)) {
                val grid = Side(1 + numbers.below(40), 1 + numbers.below(40))
                val rows = 1 + numbers.below(4)
                val columns = 1 + numbers.below(4)
                val slices = if (numbers.below(4) > 0) rows * columns else 0
                val size = Side(1 + numbers.below(12), 1 + numbers.below(12))
                for (i in -1 until slices) {
                    val place = if (i < 0) null else Place(i / columns + 1, i % columns + 1)
                    spans += Span(at, if (i < 0) grid else size, place = place, behind = 2 + numbers.below(2))
                    at = spans.last().run { start + tokens + behind } + 1
                }
            }
            d.of(Layout(at + numbers.below(5), spans))
        }
        assertEquals(vectors["canvases"], Vectors.sha(found.flatMap { it.map(Vectors::bytes) }))
    }

    @TestFactory
    fun `RoPE rows are Python's to the last bit`(): List<DynamicTest> = vectors["ropes"].objects().map { case ->
        val rope = Rope.read(case["rope"], "rope")
        dynamicTest("$rope") {
            val places = Array(rope.axes) { axis -> LongArray(16384) { it * longArrayOf(1, 3, 7)[axis] } }
            val (cos, sin) = rope.rows(places)
            assertEquals(case["rows"], listOf(Vectors.sha(Vectors.bytes(cos)), Vectors.sha(Vectors.bytes(sin))))
        }
    }

    @Test
    fun `frames in time and pooled ones are Python's`() {
        val case = vectors["packings"].obj()
        val numbers = Numbers(77)
        val pooled = Pooled(Side(5, 4), 3, numbers.features(1, 3))
        val rows = pooled.run(List(3) { Rows(numbers.features(20, 3), 3) })
        assertEquals(case["pooled"], sha(listOf(rows)))
        assertEquals(pooled.tokens, rows.count)
        val layout = Layout(60, listOf(Span(4, Side(2, 3), frames = 5, step = 1.3), Span(40, Side(1, 7))))
        val found = Positions(mapOf("main" to Rope(1e4, 32, sections = listOf(4, 6, 6)))).of(layout)
        assertEquals(case["frames"], found.map { it.toList() })
    }

    @Test
    fun `packing is what transformers makes of numbered features`() {
        val recorded = Vectors.json("edgevlm/assets/packing.json")
        val side = recorded["side"].int()
        for (case in recorded["cases"].objects()) {
            val (rows, columns) = case["tiles"].ints()
            val last = "sides" in case
            val crop = CropTo(0, 0, 1, 1)
            val tiles = (0 until rows * columns).map { View(listOf(crop), Place(it / columns + 1, it % columns + 1)) }
            val whole = listOf(View(listOf(crop)))
            val views = if (last) tiles + whole else whole + tiles
            val sides = (case["sides"] as List<*>?)?.map { it.ints().let { (r, c) -> Side(r, c) } }
                ?: List(views.size) { Side(side, side) }
            val most = (case["most"] as Long?)?.toInt()
            val separator = if (last) listOf(-2.0) else emptyList()
            val packing = Packing(most, listOf(-1.0), wholeLast = last, separator = separator)
            val (width, height) = case["picture"].ints()
            val packed = packing.plan(width, height, views, sides)
            val features = sides.mapIndexed { view, (r, c) ->
                val first = view * side * side
                Rows(FloatArray(r * c) { (first + it / c * side + it % c).toFloat() }, 1)
            }
            val expected = case["tokens"].floats()
            assertEquals(expected.size, packed.tokens)
            assertArrayEquals(expected, packed.run(features).values, 1e-3f, "${case["picture"]}")
        }
        for (case in recorded["framed"].objects()) {
            val (rows, columns) = case["side"].ints()
            val packing = Packing(newline = listOf(-1.0), framed = true, begin = listOf(-2.0), end = listOf(-3.0))
            val views = listOf(View(listOf(CropTo(0, 0, 1, 1))))
            val packed = packing.plan(columns, rows, views, listOf(Side(rows, columns)))
            val numbers = Rows(FloatArray(rows * columns) { it.toFloat() }, 1)
            assertArrayEquals(case["tokens"].floats(), packed.run(listOf(numbers)).values)
        }
    }

    @Test
    fun `positions are those of transformers`() {
        val recorded = Vectors.json("edgevlm/assets/places.json")
        val rope = mapOf("main" to Rope(1e4, 32, sections = listOf(4, 6, 6)))
        for ((name, places) in listOf("tokens" to Positions.Places.GRID, "canvas" to Positions.Places.CANVAS)) {
            for (case in recorded[name].objects()) {
                val spans = (case["spans"] as List<*>).map { span ->
                    val numbers = span as List<*>
                    val (start, rows, columns) = numbers.take(3).ints()
                    val place = numbers.getOrNull(3)?.ints()?.let { (row, column) -> Place(row, column) }
                    Span(start, Side(rows, columns), place = place, behind = numbers.getOrNull(4)?.int() ?: 0)
                }
                val found = Positions(rope, places = places).of(Layout(case["length"].int(), spans))
                assertEquals(case["places"], found.map { it.toList() })
            }
        }
        for (case in recorded["number"].objects()) {
            val axes = (case["places"] as List<*>).size
            val spans = (case["spans"] as List<*>).map { span ->
                val (start, rows, columns) = span.ints()
                val packed = Packing(framed = true).plan(1, 1, emptyList(), listOf(Side(rows, columns)))
                Span(start, Side(1, packed.tokens), packed)
            }
            val layout = Layout(case["length"].int(), spans)
            val found = Positions(rope, places = Positions.Places.NUMBER).of(layout, axes = axes)
            assertEquals(case["places"], found.map { it.toList() })
        }
    }

    @Test
    fun `a view that a tower does not take is refused`() {
        val spec = readImageSpec(vectors["families"].objects()[0]["preprocess"])
        for (family in vectors["families"].objects()) {
            val tower = Tower.read(family["vision"], "vision")
            org.junit.jupiter.api.assertThrows<ai.edgevlm.EdgeVLMException.RuntimeFailed> {
                tower.feeds(listOf(RgbImage(7, 5, ByteArray(105))), spec)
            }
        }
    }
}
