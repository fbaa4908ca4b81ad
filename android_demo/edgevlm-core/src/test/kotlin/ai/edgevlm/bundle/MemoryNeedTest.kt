package ai.edgevlm.bundle

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.install.MadeBundle
import ai.edgevlm.json.Json
import ai.edgevlm.obj
import java.io.File
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir

class MemoryNeedTest {
    @TempDir
    lateinit var made: Path

    private fun manifest(onnx: Boolean): Manifest {
        val data = Json.parse(File(MadeBundle.make(made.toFile()), "manifest.json").readBytes(), 16 shl 20).obj().toMutableMap()
        if (onnx) data["targets"] = mapOf("onnx" to mapOf("kind" to "onnx", "graphs" to emptyMap<String, Any?>()))
        return Manifest.read(data)
    }

    @Test
    fun `weights, states and the rest`() {
        val manifest = manifest(onnx = true)
        val spec = manifest.spec
        val onnx = MadeBundle.weights.filterKeys { it.startsWith("onnx/") }.values.sum()
        val one = MemoryNeed.of(manifest, 1)
        assertEquals((onnx * 1.3).toLong(), one.weights)
        val row = spec.states.filter { it.shape[1] == null }.sumOf { 4L * it.shape[0]!! * it.shape[2]!! }
        assertTrue(row > 0)
        val ten = MemoryNeed.of(manifest, 11)
        assertEquals(row * 10 * 3 / 2, ten.states - one.states)
        assertEquals(MemoryNeed.of(manifest, spec.contextLength), MemoryNeed.of(manifest))
        assertEquals(MemoryNeed.of(manifest, Int.MAX_VALUE), MemoryNeed.of(manifest))
        assertEquals(one.weights + one.states + one.working, one.total)
    }

    @Test
    fun `a device with too little is told both numbers`() {
        val need = MemoryNeed.of(manifest(onnx = true))
        need.check(need.total)
        val error = assertThrows<NotEnoughMemory> { need.check(need.total - 1) }
        assertEquals(listOf(need.total, need.total - 1), listOf(error.needed, error.available))
        assertThrows<EdgeVLMException.Unsupported> { MemoryNeed.of(manifest(onnx = false)) }
    }
}
