package ai.edgevlm.bundle

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.BestGrid
import ai.edgevlm.image.CoveringTiles
import ai.edgevlm.image.Crop
import ai.edgevlm.image.Filled
import ai.edgevlm.image.Fit
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.Native
import ai.edgevlm.image.NativeFrames
import ai.edgevlm.image.NativeGrown
import ai.edgevlm.image.NativeOrTiles
import ai.edgevlm.image.NativeScaled
import ai.edgevlm.image.OverlappingTiles
import ai.edgevlm.image.Pad
import ai.edgevlm.image.PaddedTiles
import ai.edgevlm.image.RatioTiles
import ai.edgevlm.image.ResizeTo
import ai.edgevlm.image.Rule
import ai.edgevlm.image.Stretch
import ai.edgevlm.image.TilesThenWhole
import ai.edgevlm.image.View
import ai.edgevlm.image.WholeThenSlices
import ai.edgevlm.image.WholeThenTiles
import ai.edgevlm.image.Within
import ai.edgevlm.layout.Positions
import ai.edgevlm.layout.SheetTower
import ai.edgevlm.layout.SquareTower
import ai.edgevlm.text.PromptSpec

/** How preprocess.json and prompt.json agree with the manifest: Python's `edgevlm.bundle.check`. */
internal object SpecCheck {
    /** Every view is one that the model takes, and stands for as many tokens. */
    fun image(image: ImageSpec, spec: ModelSpec) {
        val video = image.video
        val rules = listOfNotNull(image.rule, image.several, video?.rule)
        val tower = spec.tower
        val side: Int
        when (tower) {
            is SquareTower -> {
                side = tower.side
                val good = rules.all { it.side == side }
                agree(good, "preprocess.json", "the rule ${image.rule}", "views of the $side pixels of the tower")
            }
            is SheetTower -> {
                side = tower.window * tower.patch
                val rule = image.rule
                val margin = tower.margin * tower.patch
                val good = rule is OverlappingTiles && rule.side == side && rule.margin == margin
                agree(good, "preprocess.json", "the rule $rule", "squares of $side pixels with margins of $margin")
            }
            else -> {
                side = spec.unitPixels
                val good = rules.all { rule -> rule.unit.let { it != null && it % side == 0 } }
                agree(good, "preprocess.json", "the rule ${image.rule}", "views of any number of units of $side pixels")
            }
        }
        if (video != null) {
            agree(video.group == spec.frames, "preprocess.json", "${video.group} frames in a view of a video", "${spec.frames}")
            agree(!video.pooled || spec.newline, "preprocess.json", "a video that ends in a newline", "none")
        }
        val tokens = image.tokenGrid(View(ResizeTo(side, side)))
        val ours = spec.tokenGrid(side, side)
        agree(tokens == ours, "preprocess.json", "$tokens image tokens in $side x $side pixels", "$ours")
        val packing = image.packing
        for ((name, row, has) in listOf(
            Triple("newline", packing?.newline, spec.newline),
            Triple("begin", packing?.begin, spec.framed),
            Triple("end", packing?.end, spec.framed),
            Triple("separator", packing?.separator, spec.separator),
        )) {
            val width = if (has) spec.featureWidth else 0
            val size = row?.size ?: 0
            agree(size == width, "preprocess.json", "a $name of $size values", "$width")
        }
        agree((packing?.framed ?: false) == spec.framed, "preprocess.json", "packing.framed ${!spec.framed}", "${spec.framed}")
    }

    /** Every token is one of the model's. */
    fun prompt(prompt: PromptSpec, spec: ModelSpec) {
        val file = "prompt.json"
        agree(prompt.imageTokenId == spec.imageTokenId, file, "image_token_id ${prompt.imageTokenId}", "${spec.imageTokenId}")
        val places = spec.positions.places
        val canvas = prompt.canvas.isNotEmpty() == (places == Positions.Places.CANVAS)
        agree(canvas, file, "a canvas of the tokens ${prompt.canvas}", "one for places $places")
        val found = prompt.markers.associate { it.tokenId to it.row.size }
        val whole = found == spec.markers.associateWith { spec.hiddenSize }
        agree(whole, file, "rows for the tokens ${found.keys.sorted()}", "whole ones for ${spec.markers.sorted()}")
        val asked = prompt.chat.roles.filterValues { it.places != null }.keys.firstOrNull()
        agree(spec.hasRegion || asked == null, file, "the role '${asked?.take(80)}' that asks for places", "a region head for it")
        for (token in prompt.stopIds + listOfNotNull(prompt.bosId.takeIf { prompt.addBos })) {
            agree(token < spec.vocabSize, file, "the token $token", "ids below ${spec.vocabSize}")
        }
    }

    private fun agree(good: Boolean, file: String, found: String, expected: String) {
        if (good) return
        throw EdgeVLMException.BundleError("$file and manifest.json disagree: $found, expected $expected; ${Records.AGAIN}.")
    }
}

/** Pixels per side of a rule's square views, where it has such. */
private val Rule.side: Int?
    get() = when (this) {
        is Stretch -> side
        is Crop -> side
        is Pad -> side
        is Fit -> side
        is WholeThenSlices -> side
        is TilesThenWhole -> side
        is WholeThenTiles -> side
        is RatioTiles -> side
        is BestGrid -> side
        is CoveringTiles -> side
        is NativeOrTiles -> side
        is PaddedTiles -> side
        is OverlappingTiles -> side
        is Native, is NativeGrown, is NativeScaled, is NativeFrames, is Filled, is Within -> null
    }

/** Pixels that its views' sides are multiples of, where it has such. */
private val Rule.unit: Int?
    get() = when (this) {
        is WholeThenSlices -> unit
        is NativeOrTiles -> unit
        is PaddedTiles -> unit
        is Native -> unit
        is NativeGrown -> unit
        is NativeScaled -> unit
        is NativeFrames -> unit
        is Filled -> unit
        is Within -> unit
        else -> null
    }
