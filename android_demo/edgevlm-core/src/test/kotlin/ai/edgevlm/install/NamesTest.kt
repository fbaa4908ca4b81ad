package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import java.io.File
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

/** Names that Python takes, and no others. */
class NamesTest {
    /** JSON that holds halves of surrogates, which the SDK's own reader refuses. */
    private val lines = Vectors.file("android_demo/vectors/names.json").readLines()

    private fun strings(of: List<String>) = of.map { line ->
        Regex("\\\\(u([0-9a-f]{4})|.)").replace(line.trim().removeSuffix(",").removeSurrounding("\"")) { match ->
            val code = match.groupValues[2]
            val char = if (code.isNotEmpty()) code.toInt(16).toChar() else mapOf("n" to '\n', "t" to '\t', "r" to '\r')[match.groupValues[1]] ?: match.groupValues[1][0]
            Regex.escapeReplacement(char.toString()).let { char.toString() }
        }
    }

    private fun takes(vararg names: String): Boolean = try {
        Names.check(names.toList())
        true
    } catch (_: EdgeVLMException.BundleError) {
        false
    }

    /** The lists of a key, one item a line. */
    private fun rows(key: String, size: Int): List<List<String>> {
        val from = lines.indexOf("\"$key\": [") + 1
        return lines.drop(from).takeWhile { it != "]" && it != "]," || true }.chunked(size + 2).takeWhile { it.first() == "[" }.map { it.subList(1, size + 1) }
    }

    @Test
    fun `names are taken as in Python`() {
        val rows = rows("names", 2)
        assertEquals(true, rows.size > 150)
        for ((name, good) in rows.map { strings(it) }) assertEquals(good.toBoolean(), takes(name), name)
    }

    @Test
    fun `names that are one where case does not count`() {
        val rows = rows("pairs", 3)
        assertEquals(true, rows.size > 15)
        for ((one, other, good) in rows.map { strings(it) }) assertEquals(good.toBoolean(), takes(one, other), "$one $other")
    }
}
