package ai.edgevlm.text

import ai.edgevlm.json.Json
import java.io.File
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.condition.EnabledIfSystemProperty

/** SmolLM2's own vocabulary of 49,152 tokens, where tests/test_android.py names a folder with it and the library's ids. */
@EnabledIfSystemProperty(named = "edgevlm.real", matches = ".+")
class RealTokenizerTest {
    @Test
    fun `ids and texts are the library's`() {
        val folder = File(System.getProperty("edgevlm.real"))
        val rules = Tokenizer.parse(File(folder, "tokenizer.json").readBytes())
        val cases = Json.parse(File(folder, "cases.json").readBytes(), 1 shl 30) as List<*>
        assertTrue(cases.size >= 400)
        for (case in cases) {
            val (text, ids, back) = case as List<*>
            assertArrayEquals(TextVectors.ints(ids), rules.encode(text as String), text.take(200))
            val stream = rules.stream()
            assertEquals(back, rules.decode(TextVectors.ints(ids)))
            assertEquals(back, TextVectors.ints(ids).joinToString("") { stream.push(it) } + stream.finish())
        }
    }
}
