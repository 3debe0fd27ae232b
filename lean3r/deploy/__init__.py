"""Models as files that run without lean3r: ONNX, torch.export, and packages that AOTInductor compiles."""

from lean3r.deploy.export import Exported, export_model

__all__ = ["Exported", "export_model"]
