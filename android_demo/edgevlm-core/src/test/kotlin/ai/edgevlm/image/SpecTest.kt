package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import ai.edgevlm.ints
import ai.edgevlm.obj
import ai.edgevlm.objects
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** A `preprocess.json` is taken or refused, and plans, as in Python: each field with many a value, missing, misspelt. */
class SpecTest {
    private val vectors = Vectors.json("android_demo/vectors/inputs.json")
    private val values = vectors["values"] as List<*>
    private val sizes = (vectors["sizes"] as List<*>).map { it.ints() }

    @TestFactory
    fun `specs are taken or refused as by Python`(): List<DynamicTest> = vectors["specs"].objects().map { case ->
        val spec = case["spec"].obj()
        dynamicTest("${spec["rule"]}") {
            readImageSpec(spec)
            for ((path, taken) in case["fields"].obj()) {
                val keys = path.split("/")
                val changed = values.map { value -> changed(spec, keys) { it[keys.last()] = value } } +
                    changed(spec, keys) { it.remove(keys.last()) } +
                    changed(spec, keys) { it[keys.last() + "_"] = it.remove(keys.last()) }
                val read = changed.map(::read)
                val digits = read.joinToString("") { if (it == null) "0" else "1" }
                val texts = read.filterNotNull().flatMap { made -> sizes.map { (w, h) -> planned(made, w, h, null) } }
                val found = listOf(digits, Vectors.sha(texts.joinToString("\n").toByteArray()))
                assertEquals(taken, found, "$path: $values: $texts")
            }
        }
    }

    private fun changed(
        spec: Map<String, Any?>,
        path: List<String>,
        change: (MutableMap<String, Any?>) -> Unit,
    ): Map<String, Any?> {
        val copy = LinkedHashMap(spec)
        var inner = copy
        for (key in path.dropLast(1)) inner = LinkedHashMap(inner[key].obj()).also { inner[key] = it }
        change(inner)
        return copy
    }

    private fun read(spec: Map<String, Any?>): ImageSpec? = try {
        readImageSpec(spec)
    } catch (error: EdgeVLMException.BundleError) {
        assertTrue(error.message!!.length <= 1000)
        null
    }
}
