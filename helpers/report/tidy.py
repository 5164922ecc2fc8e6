"""What a stored notebook should not hold. JupyterLab's server loads this file alone, so it imports nothing of the helpers."""

PANE = "<p class='pane'><i>Run this cell in JupyterLab (make lab) for a pane to play with.</i></p>"
WIDGET = "application/vnd.jupyter.widget-view+json"
NAMES = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
NAMES |= {"language_info": {"name": "python"}}


def tidy(notebook: dict) -> dict:
    """Drop, in place, widgets and their state, timings, progress bars and the kernel's version."""
    notebook["metadata"].clear()
    notebook["metadata"].update(NAMES)
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [output for output in cell["outputs"] if not _is_progress(output)]
            for output in cell["outputs"]:
                if output.get("data", {}).pop(WIDGET, None):  # without its state it would show as an error
                    output["data"]["text/html"] = PANE
    return notebook


def _is_progress(output: dict) -> bool:
    """Progress bars of tqdm, as text on standard error or as a widget."""
    return output.get("name") == "stderr" or "%|" in str(output.get("data", {}).get("text/plain", ""))
