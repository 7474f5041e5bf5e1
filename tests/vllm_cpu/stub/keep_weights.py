# SPDX-License-Identifier: Apache-2.0
"""vLLM plugin: linear layers keep their weights where a weight update finds them.

On a CPU vLLM packs the weights of a linear layer after loading and drops the originals
(``vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm``), so the first update by verl has nothing to write
to. On an accelerator nothing is packed. vLLM loads the plugin in each of its processes.
"""


def apply() -> None:
    import torch
    from vllm.model_executor.layers import utils

    def multiply_with_the_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = multiply_with_the_weight
