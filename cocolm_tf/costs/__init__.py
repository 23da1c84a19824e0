"""What a training run costs: counted from its configuration, read from its program, or measured."""

from cocolm_tf import lazy

__getattr__, __dir__, __all__ = lazy.exports(
    __name__,
    {
        "accelerators": ["ACCELERATORS", "Accelerator"],
        "compiled": ["compiled_costs"],
        "estimation": ["estimate"],
        "flops": ["pretraining_flops"],
        "memory": ["step_memory"],
        "step_benchmark": ["benchmark"],
        "step_export": ["compile_for", "export_step"],
        "workload": ["count_parameters"],
    },
)
