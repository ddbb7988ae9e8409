"""Files that one node saves below ComfyUI's output folder and another loads, from there or from the input folder."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

OUTPUT_MARK = " [output]"  # ComfyUI's own mark for a file in the output folder


@dataclass(frozen=True)
class SavedFiles:
    """`folder` of the output folder, the files' `suffix`, and the display name of the node that saves them."""

    folder: str
    suffix: str
    saver: str

    def listed(self) -> dict[str, Path]:
        """What the loading node offers: name -> file, of the output folder with ComfyUI's mark, and of the input folder."""
        found = {}
        for root, folder, mark in ((folder_paths.get_output_directory(), self.folder, OUTPUT_MARK), (folder_paths.get_input_directory(), "", "")):
            for name in folder_paths.recursive_search(str(Path(root, folder)))[0]:
                if name.lower().endswith(self.suffix):
                    found[Path(folder, name).as_posix() + mark] = Path(root, folder, name)
        return dict(sorted(found.items()))

    def locate(self, name: str) -> Path:
        """The file of a name in `listed`. Raises FileNotFoundError that says where it was looked for."""
        found = self.listed().get(name)
        if found is None:
            raise FileNotFoundError(f"file: {name!r} is neither in {Path(folder_paths.get_output_directory(), self.folder)} nor in "
                                    f"{folder_paths.get_input_directory()}. Save it with {self.saver}, or copy it there, and press R in the editor.")
        return found

    def next(self, prefix: str) -> tuple[Path, str]:
        """The next free file for a `filename_prefix` (subfolders and %year%... as in Save Image), and its name in `listed`."""
        root = Path(folder_paths.get_output_directory(), self.folder)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(root))
        file = f"{name}_{counter:05}_{self.suffix}"
        return Path(folder, file), Path(self.folder, subfolder, file).as_posix() + OUTPUT_MARK
