package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import ai.edgevlm.obj
import ai.edgevlm.objects
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** A `preprocess.json` is taken or refused as Python does, each field with many a value, missing, or under another name. */
class SpecTest {
    private val vectors = Vectors.json("android_demo/vectors/inputs.json")
    private val values = vectors["values"] as List<*>

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
                assertEquals(taken, changed.joinToString("") { if (accepted(it)) "1" else "0" }, "$path: $values")
            }
        }
    }

    private fun changed(spec: Map<String, Any?>, path: List<String>, change: (MutableMap<String, Any?>) -> Unit): Map<String, Any?> {
        val copy = LinkedHashMap(spec)
        var inner = copy
        for (key in path.dropLast(1)) inner = LinkedHashMap(inner[key].obj()).also { inner[key] = it }
        change(inner)
        return copy
    }

    private fun accepted(spec: Map<String, Any?>): Boolean = try {
        readImageSpec(spec)
        true
    } catch (error: EdgeVLMException.BundleError) {
        assertTrue(error.message!!.length <= 1000)
        false
    }
}
