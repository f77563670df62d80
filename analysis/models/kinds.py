"""What may be written for a model, and what it means."""

EMBEDDED = "embedded"
"""The model that is installed with Sinkscope."""
KINDS = {
    EMBEDDED: "SmolLM2-135M-Instruct, 30 layers of 9 heads, installed with Sinkscope; needs no network",
    "ORG/NAME": "a model of the Hugging Face hub, downloaded once",
    "FOLDER": "a folder with config.json, *.safetensors and a tokenizer",
    "FILE.gguf": "a GGUF file of a llama-like family",
}
