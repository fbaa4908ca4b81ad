package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.Bundle
import ai.edgevlm.image.RgbImage
import ai.edgevlm.layout.Frame
import ai.edgevlm.layout.Layout
import ai.edgevlm.text.Message
import ai.edgevlm.text.Prompter
import ai.edgevlm.text.Shown

/**
 * A prepared question. [views]: of all pictures in order, with their [keys]. [maxTokens]: what the options ask for, cut
 * to what the context length leaves. [frames]: what the model sees of each picture.
 */
internal class Prompt(
    val ids: IntArray,
    val layout: Layout,
    val views: List<RgbImage>,
    val keys: List<String>,
    val maxTokens: Int,
    val frames: List<Frame>,
) {
    val imageTokens: Int get() = layout.spans.sumOf { it.tokens }

    /** The keys of each span's views. */
    val pictureKeys: List<List<String>>
        get() {
            var start = 0
            return layout.spans.map { span ->
                keys.subList(start, start + span.features.size).also { start += span.features.size }
            }
        }

    /** How many views' tokens lie before [start]. */
    fun viewsBefore(start: Int): Int = layout.spans.filter { it.start < start }.sumOf { it.features.size }
}

/** A picture of a conversation, and the most tiles that it may take. */
internal class Given(val picture: RgbImage, val maxTiles: Int?)

/** Everything that is computed before the engine starts. */
internal fun prepare(
    bundle: Bundle,
    prompter: Prompter,
    cache: PictureCache,
    pictures: List<Given>,
    messages: List<Message>,
    options: AskOptions,
): Prompt {
    val limit = bundle.manifest.spec.contextLength
    val several = pictures.size > 1
    val rule = bundle.imageSpec.among(pictures.size)
    var imageTokens = 0
    val seen = pictures.map { given ->
        // Once the pictures alone are too many, only their sizes still matter.
        cache.look(given.picture, rule, several, given.maxTiles, limit - imageTokens).also { imageTokens += it.count }
    }
    val encoded = prompter.encode(messages, seen.map { Shown.Views(it.tokens) }, thinking = options.thinking)
    val length = encoded.ids.size
    if (length >= limit) throw tooLong(length, imageTokens, pictures.size, options.maxTokens, limit)
    return Prompt(
        encoded.ids, encoded.layout, seen.flatMap { it.views }, seen.flatMap { it.keys },
        minOf(options.maxTokens, limit - length), seen.map { it.frame },
    )
}

private fun tooLong(prompt: Int, image: Int, pictures: Int, wanted: Int, limit: Int): EdgeVLMException {
    val (what, remedy) = if (image > 0) {
        "$image of them from ${if (pictures == 1) "1 picture" else "$pictures pictures"}" to
            "allow fewer tiles per picture, give fewer pictures or a shorter question"
    } else {
        "none of them from pictures" to "ask a shorter question"
    }
    return EdgeVLMException.ContextFull(
        "The prompt takes $prompt tokens ($what) and up to $wanted for the answer, but the model's context holds $limit: " +
            "$remedy.",
        prompt + wanted, limit,
    )
}
