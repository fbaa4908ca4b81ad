package ai.edgevlm.layout

import ai.edgevlm.Vectors
import ai.edgevlm.image.Color
import ai.edgevlm.image.CropTo
import ai.edgevlm.image.PadTo
import ai.edgevlm.image.Place
import ai.edgevlm.image.ResizeTo
import ai.edgevlm.image.View
import ai.edgevlm.int
import ai.edgevlm.objects
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** Boxes and points of answers, sense and nonsense. */
class GroundingTest {
    private val vectors = Vectors.json("android_demo/vectors/inputs.json")

    @Test
    fun `answers' boxes and points are Python's`() {
        val forms = (vectors["forms"] as List<*>).map { Grounding.read(it, "grounding") }
        val black = Color(0, 0, 0)
        val views = listOf(
            View(listOf(ResizeTo(300, 200))),
            View(listOf(PadTo(400, 400, 40, 0, black), ResizeTo(96, 96))),
            View(listOf(ResizeTo(104, 160), CropTo(4, 32, 96, 96))),
            View(listOf(ResizeTo(300, 200), PadTo(400, 400, 50, 100, black), CropTo(0, 0, 200, 200)), Place(1, 1)),
        )
        for (case in vectors["answers"].objects()) {
            val frame = Frame.of(320, 400, listOf(views[case["views"].int()]))
            val (boxes, points) = forms[case["form"].int()].find(case["text"] as String, frame)
            val told = boxes.map { listOf(it.label, it.x0, it.y0, it.x1, it.y1) }
            assertEquals(numbers(case["boxes"]), told, "${case["text"]}")
            assertEquals(numbers(case["points"]), points.map { listOf(it.label, it.x, it.y) }, "${case["text"]}")
        }
    }

    private fun numbers(rows: Any?): List<List<Any?>> =
        (rows as List<*>).map { row -> (row as List<*>).map { if (it is Number) it.toDouble() + 0.0 else it } }

    @Test
    fun `answers of any length are read in a moment`() {
        val tagged = Grounding(
            Grounding.Form.TAGGED, 1000, open = "<box>", close = "</box>", labelOpen = "<ref>", labelClose = "</ref>",
        )
        val frame = Frame.of(100, 100, listOf(View(listOf(ResizeTo(100, 100)))))
        val tokens = Grounding(Grounding.Form.TOKENS, 64, open = "<loc_", close = ">")
        val forms = listOf(Grounding(Grounding.Form.JSON), tagged, tokens)
        val start = System.nanoTime()
        val pieces = listOf("{", "{\"", "[", "<box>", "<box>[1", "<ref>", "<loc_", "<loc_1>", "<", "1", " ", "\\")
        for (piece in pieces) {
            for (form in forms) form.find(piece.repeat(400_000 / piece.length), frame)
        }
        assertTrue(System.nanoTime() - start < 20e9)
    }
}
