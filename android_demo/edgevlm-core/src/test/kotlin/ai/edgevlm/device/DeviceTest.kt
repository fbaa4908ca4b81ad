package ai.edgevlm.device

import ai.edgevlm.EdgeVLMException
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

class DeviceTest {
    @Test
    fun `Android's levels of memory`() {
        // TRIM_MEMORY_RUNNING_MODERATE, _RUNNING_LOW, _RUNNING_CRITICAL, _UI_HIDDEN, _BACKGROUND, _MODERATE, _COMPLETE
        val expected = listOf(Trim.NOTHING, Trim.CACHES, Trim.CACHES, Trim.SESSIONS, Trim.SESSIONS, Trim.SESSIONS, Trim.SESSIONS)
        assertEquals(expected, listOf(5, 10, 15, 20, 40, 60, 80).map(Trim::of))
    }

    @Test
    fun `a provider that is there, before the CPU, or none`() {
        val all = setOf("CPUExecutionProvider", "XnnpackExecutionProvider", "NnapiExecutionProvider")
        assertEquals(listOf("CPUExecutionProvider"), Provider.choose(Accelerator.CPU, emptySet(), 26).map { it.name })
        val xnnpack = Provider.choose(Accelerator.XNNPACK, all, 26, threads = 4)
        assertEquals(listOf("XnnpackExecutionProvider", "CPUExecutionProvider"), xnnpack.map { it.name })
        assertEquals(mapOf("intra_op_num_threads" to "4"), xnnpack.first().options)
        assertEquals("NnapiExecutionProvider", Provider.choose(Accelerator.NNAPI, all, 27).first().name)
        assertThrows<EdgeVLMException.Unsupported> { Provider.choose(Accelerator.NNAPI, all, 26) }
        assertThrows<EdgeVLMException.Unsupported> { Provider.choose(Accelerator.QNN, all, 34) }
    }
}
