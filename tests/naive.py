"""The tokenizer a second time, in float64 NumPy and plain loops, over weights under their published names.

It shares no code and no trick with `sweettok`: no batches, no shared computation, no cached codebook, every slice
decoded from the start, attention on one token written out. `W` maps published names to arrays; `p` is the prefix of a
part. Clips are (3, T, H, W), token grids (t, h, w, D).
"""

from math import erf

import numpy as np

EPS = 1e-5


def layer_norm(x, scale, shift):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPS) * scale + shift


def plain_norm(W, p, x):
    return layer_norm(x, W[p + "weight"], W[p + "bias"])


def norm(W, p, x):
    return layer_norm(x, W[p + "gamma"], W[p + "beta"])


def linear(W, p, x):
    weight = W[p + "weight"].reshape(len(W[p + "weight"]), -1)  # some are stored as 1x1 convolutions
    return x @ weight.T + W.get(p + "bias", 0.0)


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def rotate(x, grid):
    """x (N, head_dim), row-major on grid (h, w): pair p turns by column * freq[p/2] or row * freq[(p-1)/2]."""
    out, (_, width), head_dim = np.empty_like(x), grid, x.shape[1]
    for n in range(len(x)):
        column, row = n % width, n // width
        for pair in range(head_dim // 2):
            frequency = 10000.0 ** (-4 * (pair // 2) / head_dim)
            phi = (column if pair % 2 == 0 else row) * frequency
            a, b = x[n, 2 * pair], x[n, 2 * pair + 1]
            out[n, 2 * pair] = a * np.cos(phi) - b * np.sin(phi)
            out[n, 2 * pair + 1] = a * np.sin(phi) + b * np.cos(phi)
    return out


def attention(W, p, x, context=None, grid=None, causal=False):
    """One sequence x (N, D); keys and values from the un-normed x, or from the normed context."""
    head_dim = len(W[p + "q_scale"])
    inner = len(W[p + "to_q.weight"])
    q = linear(W, p + "to_q.", norm(W, p + "norm.", x))
    kv = linear(W, p + "to_kv.", x if context is None else norm(W, p + "context_norm.", context))
    k, v = kv[:, :inner], kv[:, inner:]
    out = np.zeros((len(x), inner))
    for head in range(inner // head_dim):
        channels = slice(head * head_dim, (head + 1) * head_dim)
        qh, kh, vh = q[:, channels], k[:, channels], v[:, channels]
        if grid is not None:
            qh, kh = rotate(qh, grid), rotate(kh, grid)
        if p + "null_kv" in W:
            null = W[p + "null_kv"][head]
            kh, vh = np.concatenate((null[0::2], kh)), np.concatenate((null[1::2], vh))
        qh, kh = unit(qh) * W[p + "q_scale"], unit(kh) * W[p + "k_scale"]
        scores = np.array([[8 * float(a @ b) for b in kh] for a in qh])
        if causal:
            for i in range(len(x)):
                scores[i, i + 1 :] = -np.inf
        out[:, channels] = softmax(scores) @ vh
    return linear(W, p + "to_out.", out)


def window_attention(W, p, x, grid, size, head_dim):
    """One sequence x (h*w, D) in windows of size x size."""
    height, width = grid
    table = W[p + "relative_position_bias_table"]
    qkv = linear(W, p + "qkv.", norm(W, p + "norm.", x))
    inner = qkv.shape[1] // 3
    out = np.zeros((len(x), inner))
    for top in range(0, height, size):
        for left in range(0, width, size):
            places = [(top + y, left + x_) for y in range(size) for x_ in range(size)]
            rows = [y * width + x_ for y, x_ in places]
            for head in range(inner // head_dim):
                channels = slice(head * head_dim, (head + 1) * head_dim)
                q, k, v = (qkv[rows, i * inner : (i + 1) * inner][:, channels] for i in range(3))
                scores = (q * head_dim**-0.5) @ k.T
                for i, (yq, xq) in enumerate(places):
                    for j, (yk, xk) in enumerate(places):
                        row = (yq - yk + size - 1) * (2 * size - 1) + (xq - xk + size - 1)
                        scores[i, j] += table[row, head]
                out[rows, channels] = softmax(scores) @ v
    return linear(W, p + "proj.", out)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def feed_forward(W, p, x):
    both = linear(W, p + "1.", plain_norm(W, p + "0.", x))
    half = both.shape[-1] // 2
    return linear(W, p + "4.", both[..., :half] * gelu(both[..., half:]))


def peg(W, p, x):
    """Depthwise 3x3x3 convolution of x (t, h, w, D): the past two slices and this one, the neighbours in space."""
    weight, bias = W[p + "dsconv.weight"][:, 0], W[p + "dsconv.bias"]
    t, h, w, _ = x.shape
    out = np.empty_like(x)
    for i in range(t):
        for y in range(h):
            for z in range(w):
                total = bias.copy()
                for di in range(3):
                    for dy in range(3):
                        for dz in range(3):
                            place = (i + di - 2, y + dy - 1, z + dz - 1)
                            if place[0] >= 0 and 0 <= place[1] < h and 0 <= place[2] < w:
                                total += weight[:, di, dy, dz] * x[place]
                out[i, y, z] = total
    return out


def spatial_transformer(W, p, x, grid, block, contexts=None):
    """x (t, N, D), contexts[i] (N', D) -> un-normed outputs of all layers. Layer kinds follow from the names."""
    outputs, i = [], 0
    while f"{p}layers.{i}.3.0.weight" in W:
        q = f"{p}layers.{i}."
        if q + "0.dsconv.weight" in W:
            x = x + peg(W, q + "0.", x.reshape(len(x), *grid, -1)).reshape(x.shape)
        rows = []
        for row in x:
            if q + "1.qkv.weight" in W:
                row = row + window_attention(W, q + "1.", row, grid, block.window_size, block.head_dim)
            else:
                row = row + attention(W, q + "1.", row, grid=grid)
            if q + "2.to_q.weight" in W:
                row = row + attention(W, q + "2.", row, context=contexts[i])
            rows.append(row + feed_forward(W, q + "3.", row))
        x = np.stack(rows)
        outputs.append(x)
        i += 1
    return outputs


def temporal_transformer(W, p, x, grid, scrambled):
    """x (h*w, t, D) -> un-normed outputs of all layers."""
    places, t, dim = x.shape
    outputs, i = [], 0
    while f"{p}layers.{i}.3.0.weight" in W:
        q = f"{p}layers.{i}."
        if scrambled:
            x = x + peg(W, q + "0.", x.reshape(t, *grid, dim)).reshape(places, t, dim)
        else:
            x = x + peg(W, q + "0.", x.swapaxes(0, 1).reshape(t, *grid, dim)).reshape(t, places, dim).swapaxes(0, 1)
        rows = []
        for row in x:
            row = row + attention(W, q + "1.", row, causal=True)
            rows.append(row + feed_forward(W, q + "3.", row))
        x = np.stack(rows)
        outputs.append(x)
        i += 1
    return outputs


def place_transformer(W, p, x, contexts=None):
    """x (M, D): each token a sequence of its own; contexts[i] (M, t, D) -> un-normed outputs of all layers."""
    outputs, i = [], 0
    while f"{p}layers.{i}.3.0.weight" in W:
        q = f"{p}layers.{i}."
        rows = []
        for n, token in enumerate(x):
            row = token[None]
            row = row + attention(W, q + "1.", row)
            if q + "2.to_q.weight" in W:
                row = row + attention(W, q + "2.", row, context=contexts[i][n])
            rows.append((row + feed_forward(W, q + "3.", row))[0])
        x = np.stack(rows)
        outputs.append(x)
        i += 1
    return outputs


def patch_grid(W, video, patch, tube):
    """(3, T, H, W) -> (t, h, w, D); values of a patch in the order colour, (frame,) row, column."""
    _, frames, height, width = video.shape
    slices = []
    for start, stop in [(0, 1), *((s, s + tube) for s in range(1, frames, tube))]:
        p = "encoder.to_patch_emb_first_frame." if start == 0 else "encoder.to_patch_emb."
        rows = [
            [
                plain_norm(
                    W,
                    p + "3.",
                    linear(
                        W,
                        p + "2.",
                        plain_norm(
                            W,
                            p + "1.",
                            np.array(
                                [
                                    video[c, f, y + dy, x + dx]
                                    for c in range(3)
                                    for f in range(start, stop)
                                    for dy in range(patch)
                                    for dx in range(patch)
                                ]
                            ),
                        ),
                    ),
                )
                for x in range(0, width, patch)
            ]
            for y in range(0, height, patch)
        ]
        slices.append(rows)
    return np.array(slices)


def pixels(W, p, x, patch, tube):
    """(t, h, w, D) -> (3, T, H, W)."""
    t, h, w, _ = x.shape
    video = np.empty((3, 1 + (t - 1) * tube, h * patch, w * patch))
    for i in range(t):
        frames = range(1) if i == 0 else range(1 + (i - 1) * tube, 1 + i * tube)
        head = "to_pixels_first_frame.0." if i == 0 else "to_pixels.0."
        for y in range(h):
            for z in range(w):
                values = iter(linear(W, p + head, x[i, y, z]))
                for c in range(3):
                    for f in frames:
                        for dy in range(patch):
                            for dx in range(patch):
                                video[c, f, y * patch + dy, z * patch + dx] = next(values)
    return video


def encode(W, video, config):
    """Unit latents (S, .) and (M, .) of one clip."""
    patches = patch_grid(W, video, config.proxy.patch_size, config.proxy.temporal_patch_size)
    t, h, w, dim = patches.shape
    tokens = patches.reshape(t, h * w, dim)

    slices = tokens if config.spatial_source == "all_slices" else tokens[:1]
    layers = spatial_transformer(W, "encoder.enc_spatial_transformer.", slices, (h, w), config.block)
    x = W["latent_spatial_tokens"] + W["encoder.spatial_latent_tokens_positional_embedding"]
    p = "encoder.enc_latent_spatial_transformer."
    contexts = [layer.mean(0) for layer in layers]
    layers = spatial_transformer(W, p, x[None], config.spatial_query_grid, config.block, contexts)
    x = norm(W, p + "norm_out.", layers[-1][0])
    x = linear(W, "encoder.conv_out.", plain_norm(W, "encoder.ln_post_spatial.", x))
    spatial = unit(linear(W, "pre_vq_conv_.1.", x))

    if config.temporal_source == "differences":
        motion = np.stack([tokens[i + 1] - tokens[i] for i in range(t - 1)])
    else:
        motion = np.stack([tokens[i + 1] - tokens[0] for i in range(t - 1)])
    scrambled = config.block.temporal_peg == "scrambled"
    layers = temporal_transformer(W, "encoder.enc_temporal_transformer.", motion.swapaxes(0, 1), (h, w), scrambled)
    x = W["latent_temporal_tokens"] + W["encoder.temporal_latent_tokens_positional_embedding"]
    p = "encoder.enc_latent_temporal_transformer."
    x = norm(W, p + "norm_out.", place_transformer(W, p, x, layers)[-1])
    x = linear(W, "encoder.conv_out_temporal.", plain_norm(W, "encoder.ln_post_temporal.", x))
    return spatial, unit(linear(W, "pre_vq_conv_temporal.1.", x))


def codebook(W, p, vectors, edges):
    """Codes of all words: two graph convolutions with A = D^-1/2 (edges both ways, with multiplicity, + I) D^-1/2."""
    count = len(vectors)
    adjacency = np.zeros((count, count))
    for a, b in edges:
        if a != b:
            adjacency[a, b] += 1
            adjacency[b, a] += 1
    adjacency += np.eye(count)
    degree = adjacency.sum(1)
    adjacency = adjacency / np.sqrt(degree[:, None] * degree[None])
    hidden = np.maximum(adjacency @ vectors @ W[p + "conv1.lin.weight"].T + W[p + "conv1.bias"], 0)
    return adjacency @ hidden @ W[p + "conv2.lin.weight"].T + W[p + "conv2.bias"]


def lookup(z, codes, num_modifiers, per_query):
    """z (N, 2C) -> local modifier ids in query-major order, head ids, quantized (N, 2C)."""
    width = codes.shape[1]
    modifiers, heads, quantized = [], [], []
    for query in z:
        distances = [((query[:width] - code) ** 2).sum() for code in codes[:num_modifiers]]
        chosen = sorted(range(num_modifiers), key=distances.__getitem__)[:per_query]
        head = min(
            range(len(codes) - num_modifiers), key=lambda i: ((query[width:] - codes[num_modifiers + i]) ** 2).sum()
        )
        modifiers += chosen
        heads.append(head)
        quantized.append(np.concatenate((codes[chosen].mean(0), codes[num_modifiers + head])))
    return modifiers, heads, np.array(quantized)


def union_lookup(z, codes):
    """z (N, C) -> word ids, quantized (N, C)."""
    words = [min(range(len(codes)), key=lambda i: ((query - codes[i]) ** 2).sum()) for query in z]
    return words, codes[words]


def decode(W, spatial, temporal, t, grid, config):
    """Quantized (S, .) and (M, .) -> logits (t, h, w, K), every slice through every layer."""
    x = linear(W, "decoder.decoder_embed.", linear(W, "post_vq_conv_.1.", spatial))
    x = x + W["decoder.spatial_latent_tokens_positional_embedding"]
    p = "decoder.dec_spatial_latent_transformer."
    appearance = [layer[0] for layer in spatial_transformer(W, p, x[None], config.spatial_query_grid, config.block)]
    x = linear(W, "decoder.decoder_embed_temporal.", linear(W, "post_vq_conv_temporal.1.", temporal))
    x = x + W["decoder.temporal_latent_tokens_positional_embedding"]
    motion = place_transformer(W, "decoder.dec_temporal_latent_transformer.", x)

    place = W["decoder.mask_token"].reshape(-1) + W["decoder.positional_embedding"]
    x = np.stack([place] * t)
    every = len(appearance) // len(motion)
    for i in range(len(appearance)):
        p = f"decoder.dec_spatial_transformer.layers.{i}."
        layer = {name.replace(p, "layers.0."): value for name, value in W.items() if name.startswith(p)}
        x = spatial_transformer(layer, "", x, grid, config.block, [appearance[i]])[0]
        if i % every == every - 1:
            j = i // every
            q = f"decoder.dec_temporal_transformer.{j}.layers.0."
            x = x + np.stack(
                [
                    [attention(W, q + "2.", token[None], context=motion[j][n][None])[0] for n, token in enumerate(row)]
                    for row in x
                ]
            )
            x = x + feed_forward(W, q + "3.", x)
    x = plain_norm(W, "decoder.ln_post.", norm(W, "decoder.dec_spatial_transformer.norm_out.", x))
    return linear(W, "decoder.ffn.2.", np.tanh(linear(W, "decoder.ffn.0.", x))).reshape(t, *grid, -1)


def pixel_decode(W, p, vectors, config):
    """Code vectors (t, h, w, c) -> (3, T, H, W); p is "" for the proxy, "pixel_" inside the tokenizer."""
    t, h, w, _ = vectors.shape
    x = linear(W, p + "post_vq_conv.1.", vectors).reshape(t, h * w, -1).swapaxes(0, 1)
    q, scrambled = p + "decoder.dec_temporal_transformer.", config.block.temporal_peg == "scrambled"
    x = norm(W, q + "norm_out.", temporal_transformer(W, q, x, (h, w), scrambled)[-1]).swapaxes(0, 1)
    q = p + "decoder.dec_spatial_transformer."
    x = norm(W, q + "norm_out.", spatial_transformer(W, q, x, (h, w), config.block)[-1])
    return pixels(W, p + "decoder.", x.reshape(t, h, w, -1), config.patch_size, config.temporal_patch_size)


def tokenizer(W, video, config, prior):
    """All about one clip: local ids, both latents, logits, pixels by expected code vector and by likeliest code."""
    spatial, temporal = encode(W, video, config)
    ids, quantized = [], []
    for z, name, graph in ((spatial, "quantize.", prior.spatial), (temporal, "quantize_temporal.", prior.temporal)):
        codes = codebook(W, name + "gcn.", graph.vectors.double().numpy(), graph.edges.T.tolist())
        if config.lookup == "union":
            words, output = union_lookup(z, codes)
        else:
            modifiers, heads, output = lookup(z, codes, graph.num_modifiers, config.modifiers_per_query)
            words = modifiers + heads
        ids += words
        quantized.append(output)
    t, h, w = config.proxy.grid(*video.shape[1:])
    logits = decode(W, *quantized, t, (h, w), config)
    table = W["pixel_codebook.embeddings"]
    expected = pixel_decode(W, "pixel_", softmax(logits) @ table, config.proxy)
    likeliest = pixel_decode(W, "pixel_", table[logits.argmax(-1)], config.proxy)
    return {
        "spatial": spatial,
        "temporal": temporal,
        "ids": ids,
        "logits": logits,
        "expected": expected,
        "argmax": likeliest,
    }


def proxy(W, video, config):
    """Features (t, h, w, c), codes (t, h, w) and their pixels."""
    patches = patch_grid(W, video, config.patch_size, config.temporal_patch_size)
    t, h, w, dim = patches.shape
    p = "encoder.enc_spatial_transformer."
    layers = spatial_transformer(W, p, patches.reshape(t, h * w, dim), (h, w), config.block)
    x = norm(W, p + "norm_out.", layers[-1]).swapaxes(0, 1)
    p, scrambled = "encoder.enc_temporal_transformer.", config.block.temporal_peg == "scrambled"
    x = norm(W, p + "norm_out.", temporal_transformer(W, p, x, (h, w), scrambled)[-1]).swapaxes(0, 1)
    features = unit(linear(W, "pre_vq_conv.1.", x)).reshape(t, h, w, -1)
    table = W["codebook.embeddings"]
    codes = ((features[..., None, :] - table) ** 2).sum(-1).argmin(-1)
    return features, codes, pixel_decode(W, "", table[codes], config)


def published(model):
    """The model's weights under their published names, as float64 arrays."""
    return {name: value.double().numpy() for name, value in model.to_release().items()}
