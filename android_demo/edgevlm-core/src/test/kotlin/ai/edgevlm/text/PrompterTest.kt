package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import ai.edgevlm.image.Place
import ai.edgevlm.image.ViewTokens
import ai.edgevlm.int
import ai.edgevlm.ints
import ai.edgevlm.obj
import ai.edgevlm.objects
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows

class PrompterTest {
    private fun messages(data: Any?): List<Message> = data.objects().map { message ->
        val items = (message["content"] as? List<*>)?.map { it.obj() } ?: listOf(mapOf("type" to "text", "text" to message["content"]))
        Message(message["role"] as String, items.map(::item))
    }

    private fun item(data: Map<String, Any?>): Item = when {
        data["type"] == "image" -> Item.Image
        data["type"] == "video" -> Item.Video(data["like_text"] as Boolean)
        "ids" in data -> Item.Answer(data["text"] as String, TextVectors.ints(data["ids"]), data["written"] as String)
        else -> Item.Text(data["text"] as String)
    }

    private fun video(parts: Any?) = Shown.Video(
        (parts as List<*>).map { part ->
            if (part is String) return@map Shown.Part(part, null)
            val (rows, columns, frames, step) = part as List<*>
            Shown.Part(null, ViewTokens(null, rows.int(), columns.int(), null, frames.int(), step as Double))
        },
        "",
    )

    private fun pictures(data: Any?): List<Shown> = (data as List<*>).map { views ->
        if (views is Map<*, *>) return@map video(views["video"])
        Shown.Views(
            (views as List<*>).map { view ->
                val (place, rows, columns) = view as List<*>
                ViewTokens(place?.ints()?.let { Place(it[0], it[1]) }, rows.int(), columns.int())
            },
        )
    }

    @Test
    fun `golden prompts`() {
        val golden = Vectors.json("tests/vectors/prompt.json")
        val prompter = Prompter(PromptSpec.read(golden["spec"]), TextVectors.file("tests/vectors/tokenizer.json"))
        for (case in golden["cases"].objects()) {
            val made = prompter.encode(
                messages(case["messages"]), pictures(case["pictures"]), addGenerationPrompt = case["add_generation_prompt"] as Boolean,
            )
            assertEquals(case["ids"].ints(), made.ids.toList())
            assertEquals(case["starts"].ints(), made.layout.spans.map { it.start })
        }
        val decoded = golden["decode"] as List<*>
        assertTrue(decoded.isNotEmpty())
        for (case in decoded) {
            val (ids, text) = case as? List<*> ?: case.obj().let { listOf(it["ids"], it["text"]) }
            assertEquals(text, prompter.decode(TextVectors.ints(ids)))
        }
    }

    @TestFactory
    fun `prompts of every family are Python's`(): List<DynamicTest> = TextVectors.root["prompts"].objects().map { family ->
        DynamicTest.dynamicTest(family["name"] as String) {
            val rules = Tokenizer.parse(TextVectors.written(family["tokenizer"]), family["name"] as String)
            val prompter = Prompter(PromptSpec.read(family["spec"]), rules)
            for (case in family["cases"].objects()) {
                val made = prompter.encode(messages(case["messages"]), pictures(case["pictures"]), thinking = case["thinking"] as Boolean?)
                assertEquals(case["ids"], TextVectors.short(made.ids), "${case["messages"]}")
                val spans = made.layout.spans.map { listOf(it.start, it.grid.rows, it.grid.columns, it.gap, it.behind) }
                assertEquals((case["spans"] as List<*>).map { (it as List<*>).take(5).ints() }, spans)
                val frames = made.layout.spans.map { listOf(it.frames.toLong(), it.step) }
                assertEquals((case["spans"] as List<*>).map { (it as List<*>).drop(6) }, frames)
                val places = made.layout.spans.map { span -> span.place?.let { listOf(it.row, it.column) } }
                assertEquals((case["spans"] as List<*>).map { (it as List<*>)[5]?.ints() }, places)
                assertEquals(case["markers"].ints(), made.layout.markers.map { it.start })
            }
        }
    }

    @Test
    fun `questions of every kind of tokenizer are Python's`() {
        val texts = TextVectors.root["texts"] as List<*>
        var count = 0
        for (chat in TextVectors.root["questions"].objects()) {
            val prompter = Prompter(PromptSpec.read(chat["spec"]), TextVectors.tokenizer(chat["tokenizer"] as String))
            val shown = pictures(chat["pictures"])
            val wanted = chat["ids"] as List<*>
            assertEquals(texts.size, wanted.size)
            texts.forEachIndexed { number, text ->
                val made = prompter.encode(listOf(Message.question(text as String, pictures = 1)), shown)
                assertEquals(wanted[number], TextVectors.short(made.ids), "${chat["tokenizer"]}: '$text'")
                count++
            }
        }
        assertTrue(count >= 2000, "$count")
    }

    @Test
    fun `what a conversation may not be`() {
        val golden = Vectors.json("tests/vectors/prompt.json")
        val prompter = Prompter(PromptSpec.read(golden["spec"]), TextVectors.file("tests/vectors/tokenizer.json"))
        val view = Shown.Views(listOf(ViewTokens(null, 2, 2)))
        val text = Item.Text("Hi")
        for ((given, pictures) in listOf(
            emptyList<Message>() to emptyList(),
            listOf(Message("user", emptyList())) to emptyList(),
            listOf(Message("nobody", listOf(text))) to emptyList(),
            listOf(Message("user", listOf(text))) to listOf(view),
            listOf(Message("user", listOf(Item.Image, text))) to emptyList(),
            listOf(Message("user", listOf(Item.Text("\ud83d")))) to emptyList(),
            listOf(Message("user", listOf(Item.Text("x".repeat(MOST_TEXT + 1))))) to emptyList(),
            listOf(Message("user", listOf(Item.Image, text))) to listOf(Shown.Views(listOf(ViewTokens(null, 0, 2)))),
        )) {
            assertThrows<EdgeVLMException> { prompter.encode(given, pictures) }
        }
        assertThrows<EdgeVLMException> { prompter.encode(listOf(Message.question("Hi")), thinking = true) }
    }

    @Test
    fun `an answer of before stands as the model wrote it`() {
        val golden = Vectors.json("tests/vectors/prompt.json")
        val prompter = Prompter(PromptSpec.read(golden["spec"]), TextVectors.file("tests/vectors/tokenizer.json"))
        val odd = prompter.tokenizer.encode(" a") + prompter.tokenizer.encode("b") // not as " ab" is cut
        val written = prompter.decode(odd, special = true)
        val ask = Message.question("What?")
        val whole = prompter.encode(listOf(ask, Message("assistant", listOf(Item.Answer(written.trim(), odd, written))), ask))
        val start = prompter.encode(listOf(ask)).ids
        assertArrayEquals(start + odd, whole.ids.copyOf(start.size + odd.size))
    }
}
