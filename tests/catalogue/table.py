"""The table of expectations: what must be answered to each bad input and fault, in the numbers of the catalogue.

Texts are patterns. A line is kept if one message of the answer names the file and matches all four of them.
"""

from __future__ import annotations

from tests.catalogue.promise import Promise as P

AGAIN = r"[Cc]opy .*again"

VOLUME_FILES = (
    P(1, "first half of a .nii.gz", "refused", r"voxels?", r"found \d+ of 21120 bytes", r"\(20, 22, 24\) voxels of int16", AGAIN),
    P(2, "first half of a .nii", "refused", r"voxels?", r"found \d+ bytes", r"21120", AGAIN),
    P(3, "gzip data whose checksum is zeroed", "refused", r"CRC|checksum", r"found.*0x", r"expected.*0x", AGAIN),
    P(3, "gzip data with a flipped byte", "refused", r"CRC|checksum", r"found.*0x", r"expected.*0x", AGAIN),
    P(4, "file of 0 bytes", "refused", r"", r"found 0 bytes", r"expected", r"[Dd]ownload|[Cc]opy .*again"),
    P(5, "text named .nii.gz", "refused", r"", r"found text", r"expected", r"Give the image"),
    P(5, "HTML page named .nii.gz", "refused", r"", r"found an HTML page", r"expected", r"download failed"),
    P(5, "Git LFS pointer named .nii.gz", "refused", r"", r"found a Git LFS pointer", r"expected", r"git lfs pull"),
    P(5, "zip archive named .nii.gz", "refused", r"", r"found a zip archive", r"expected", r"Unpack"),
    P(5, "JSON named .nii.gz", "refused", r"", r"found .*(JSON|text)", r"expected", r"Give the image|convert"),
    P(6, "gzip data named .nii", "warned", r"content", r"found gzip data", r"", r"a\.nii\.gz"),
    P(7, "raw data named .nii.gz", "warned", r"content", r"found no gzip data", r"", r"Rename it to a\.nii"),
    P(8, "magic replaced by xxxx", "refused", r"magic", r"found 'xxxx'", r"expected 'n\+1' or 'ni1'", r"again|convert"),
    P(9, "sizeof_hdr of 999", "warned", r"sizeof_hdr", r"found 999", r"expected 348", r"[Cc]onvert|[Ss]ave"),
    P(10, "big-endian", "read"),
    P(11, "NIfTI-2", "read"),
    P(12, "Analyze 7.5", "refused", r"", r"found Analyze 7\.5", r"expected (NIfTI|an image file)", r"--orientation-from|[Cc]onvert"),
    P(13, "first half of an NRRD file", "refused", r"voxels?", r"found \d+ (of \d+ )?bytes", r"\d+", AGAIN),
    P(13, "first half of an MHA file", "refused", r"voxels?", r"found \d+ (of \d+ )?bytes", r"\d+", AGAIN),
    P(13, "first half of an MGZ file", "refused", r"", r"found", r"expected", r"[Cc]onvert|again"),
    P(14, "header that declares 30000 voxels per axis", "refused", r"voxel", r"found 21472 bytes", r"54000000000000", r"again|dim"),
    P(15, "2 MB of gzip data that hold 2 GiB of zeros, beyond the memory", "refused", r"memory|voxel", r"found", r"expected", r"max-memory|[Ff]ree memory|[Aa]llow more", slow=True),
    P(16, "dim[1] of 0", "refused", r"dim", r"found .*0", r"none empty|at least 1", r"[Cc]heck the file|again"),
    P(16, "dim[1] of -20", "refused", r"dim", r"found .*-20", r"none empty|at least 1", r"[Cc]heck the file|again"),
    P(17, "9 axes", "refused", r"dim\[0\]", r"found 9 axes", r"expected 1 to 7", AGAIN),
    P(17, "0 axes", "refused", r"dim\[0\]", r"found 0 axes", r"expected 1 to 7", AGAIN),
    P(18, "datatype 9999", "refused", r"datatype", r"found 9999", r"one of 2 \(uint8\), 4 \(int16\)", r"convert"),
    P(18, "bitpix 8 for int16", "warned", r"bitpix", r"found 8", r"expected 16", r"datatype is used"),
    P(19, "vox_offset NaN", "refused", r"vox_offset", r"found nan", r"expected at least 352", AGAIN),
    P(19, "vox_offset -352", "refused", r"vox_offset", r"found -352", r"expected at least 352", AGAIN),
    P(19, "vox_offset 1e9", "refused", r"vox_offset", r"found 1000000000", r"21472", AGAIN),
    P(20, "header extension that claims 2^30 bytes", "warned", r"header extension", r"1073741824 bytes", r"expected at most", r"ignored"),
    P(21, "1024 bytes after the voxels", "warned", r"after the voxels", r"found 1024 bytes", r"expected", r"dim"),
    P(21, "garbage after gzip data", "warned", r"after the voxels", r"found 7 bytes", r"expected", r"dim"),
    P(22, "4D with one volume", "read"),
    P(23, "4D with three volumes", "refused", r"channels|volumes", r"found 3", r"expected 1", r"[Gg]ive"),
    P(24, "5D vectors", "refused", r"channels", r"found 3", r"expected 1", r"[Gg]ive"),
    P(25, "2D for a 3D model", "warned", r"slice", r"20x22x1", r"expected a volume", r"Give the volume"),
    P(26, "RGB voxels", "refused", r"channels", r"found 3", r"expected 1", r"[Gg]ive|convert"),
    P(27, "complex voxels", "refused", r"datatype", r"found complex64", r"expected real numbers", r"magnitude"),
    P(28, "NaN and infinity among the voxels", "refused", r"NaN or infinity", r"2 voxels, the first at \(1, 2, 3\)", r"expected none|finite", r"Replace"),
    P(29, "constant image", "warned", r"channel CT|voxels", r"found the value 0", r"expected", r"Check the file|Restore"),
    P(30, "scl_slope infinite", "refused", r"scl_slope", r"found inf", r"expected a finite number", r"Convert"),
    P(30, "scl_slope 0", "read"),
    P(30, "scl_slope and scl_inter NaN", "read"),
    P(31, "uint64 beyond 2^24", "warned", r"voxels|intensit", r"found .*18000000000000000000|1\.8e\+?19", r"16777216|2\^24", r"[Ss]cale|float32"),
    P(32, "a directory", "refused", r"", r"found", r"expected", r""),
    P(32, "a dangling link", "refused", r"", r"link to .*nowhere", r"", r""),
    P(32, "a named pipe", "refused", r"", r"found a (named )?pipe", r"expected", r"[Gg]ive"),
    P(32, "no such file", "refused", r"", r"no such file", r"", r"Check the path"),
)  # fmt: skip

GEOMETRY = (
    P(33, "qform_code and sform_code 0", "refused", r"qform_code and sform_code", r"found 0 and 0", r"expected a code above 0", r"--orientation-from"),
    P(34, "qform and sform 11.6 mm apart", "warned", r"sform and qform", r"11\.6 mm apart", r"expected the same place", r"--orientation-from"),
    P(34, "qform and sform with other axes", "refused", r"sform and qform", r"found .*(LPS|RAS)", r"expected the same", r"--orientation-from"),
    P(35, "sform without an inverse", "refused", r"affine", r"found only zeros in column 0 \(determinant 0\)", r"expected a finite, invertible", r"Correct"),
    P(36, "NaN in the sform", "refused", r"affine", r"found nan in row 0, column 0", r"expected a finite, invertible", r"Correct"),
    P(37, "sheared by 14 degrees", "warned", r"affine", r"found axes that are 14\.\d+ degrees", r"right angle", r"Resample"),
    P(37, "sheared by 0.06 degrees", "read"),
    P(37, "sheared by 56 degrees", "refused", r"affine", r"found axes that are 56\.\d degrees", r"at most 30", r"Correct the header"),
    P(38, "left-handed", "read"),
    P(39, "pixdim 1x1x1 for an affine of 0.8x0.8x5", "warned", r"voxel size", r"1x1x1 .*0\.8x0\.8x5", r"expected the same", r"--orientation-from"),
    P(40, "pixdim 0 without a form", "refused", r"pixdim", r"found .*0", r"expected", r"[Cc]orrect|[Cc]onvert"),
    P(40, "pixdim -1 without a form", "refused", r"pixdim", r"found .*-1", r"expected", r"[Cc]orrect|[Cc]onvert"),
    P(41, "microns in the header", "read"),
    P(41, "microns labelled as mm", "refused", r"voxel size", r"found 800x800x2000 mm", r"at most 100 mm", r"units"),
    P(42, "voxels of 0.01x0.01x10 mm", "refused", r"voxel size", r"0\.01x0\.01x10 mm", r"expected", r"units|Check"),
    P(42, "voxels of 0.05x0.05x10 mm", "warned", r"voxel size", r"0\.05x0\.05x10 mm", r"expected", r"Check"),
    P(43, "single slices along each axis", "read"),
    P(44, "smaller than the window: 5x3x1, one voxel, odd sizes", "read"),
    P(45, "first voxel at 100 m", "read"),
)  # fmt: skip

LABELS = (
    P(46, "NaN in a label map", "refused", r"", r"(NaN|nan) .*1 voxel.*, the first at \(1, 2, 3\)", r"expected", r"Save|Replace|integers"),
    P(47, "values of 0.9998", "warned", r"values", r"0\.9998", r"whole numbers", r"rounded|integers"),
    P(47, "values of 0.5", "refused", r"value", r"0\.5", r"expected whole numbers", r"interpolat|nearest|round"),
    P(48, "value 7 in a dataset of 0, 1, 2", "refused", r"value", r"found 7 \(3 voxels\)", r"expected one of 0, 1, 2", r"Add"),
    P(48, "mask of 0 and 255", "refused", r"value", r"found 255 \(\d+ voxels\)", r"expected one of 0, 1, 2", r"[Mm]ap|Add"),
    P(48, "image in the place of a label map", "refused", r"value", r"found .*voxels\)|negative", r"expected", r"Add|correct|Give"),
    P(49, "labels 0, 2, 30", "read", slow=True),
    P(50, "only background", "warned", r"voxels", r"0 labelled voxels", r"expected at least one", r"Check"),
    P(51, "label in no case", "warned", r"vessel", r"no (voxel|case)", r"expected at least one", r"Remove|add cases"),
    P(52, "label in no training case of a fold", "warned", r"fold|split", r"tumour in no training case", r"expected at least one", r"splits|cases"),
    P(53, "label map of another shape", "refused", r"shape|grid", r"20x22x23", r"20x22x24", r"[Rr]esample"),
    P(54, "label map shifted by 0.001 mm", "read"),
    P(54, "label map shifted by 2 mm", "refused", r"grid|affine", r"2 mm apart", r"expected", r"[Rr]esample"),
    P(54, "label map that is flipped in space", "refused", r"grid|affine", r"mm apart", r"expected", r"[Rr]esample"),
    P(55, "value 70000", "refused", r"value", r"found 70000", r"expected", r"Add|[Mm]ap"),
    P(55, "value -1", "refused", r"value", r"found -1", r"expected", r"Add|[Mm]ap|not a label|[Cc]orrect"),
    P(56, "1000 labels", "read", slow=True),
)  # fmt: skip

DATASETS = (
    P(57, "two files of one case id", "refused", r"case|c0", r"found .*c0", r"expected|both|two", r"Remove|Rename"),
    P(58, "a label map and an image are missing", "refused", r"2 files are missing", r"c1", r"c3", r"Restore"),
    P(59, "channels of another grid", "refused", r"grid|shape", r"20x22x23", r"20x22x24", r"[Rr]esample"),
    P(60, "the same image on both sides of a split", "refused", r"fold", r"found .*c0.* in training", r"expected", r"Remove"),
    P(61, "cases p01_a and p01_b on both sides of a split", "warned", r"fold|split", r"p01_[ab] in training and p01_[ab] in validation", r"expected", r"subject"),
    P(62, "split with an unknown case", "refused", r"fold 0", r"'c7'", r"expected", r"Did you mean|Correct"),
    P(63, "case in training and validation", "refused", r"fold 0", r"c0", r"expected", r"Remove|[Cc]orrect"),
    P(64, "5 folds of 3 cases", "refused", r"folds|subjects", r"found 3 subjects", r"expected at least 5", r"fewer folds"),
    P(65, "numTraining 7 for 5 cases", "warned", r"numTraining", r"found 7", r"expected 5", r"[Cc]orrect|[Rr]estore|[Cc]heck"),
    P(65, "labels and channel_names inverted", "read"),
    P(66, "dataset.json with a trailing comma", "refused", r"line 1, column", r"found", r"expected|JSON", r"Fix"),
    P(66, "dataset.json with a byte order mark", "read"),
    P(66, "dataset.json with NaN", "refused", r"line|numTraining|labels", r"NaN", r"expected", r"Fix|Correct"),
    P(67, "path that leaves the dataset", "refused", r"image|path", r"\.\./secret\.nii\.gz", r"expected|outside", r"files-root|files_root"),
    P(67, "absolute path", "refused", r"image|path", r"/secret\.nii\.gz", r"expected|outside", r"files-root|files_root"),
    P(67, "$HOME in a path", "refused", r"image|path", r"\$HOME", r"expected|outside|missing|no such", r"."),
    P(68, "invalid case ids", "refused", r"line 6", r"found", r"expected", r"Rename|Separate"),
    P(69, "one case in another orientation and one with another spacing", "warned", r"voxel size", r"1x1x20 mm", r"about 1x1x2 mm", r"Check the header"),
    P(70, "CT from 0 to 4095 among CT in HU", "warned", r"channel CT", r"found 2\d+ to|found \d+ to", r"-1000 HU", r"1024"),
)  # fmt: skip

DICOM = (
    P(71, "a slice is missing", "refused", r"gap", r"5(\.0+)? mm.*", r"expected 2\.5", r"again"),
    P(72, "positions with noise of 1e-5 mm", "read"),
    P(73, "a slice twice, with the same pixels", "warned", r"slice", r"found .*\.dcm", r"expected", r""),
    P(73, "a position twice, with other pixels", "refused", r"position|place", r"found .*\.dcm.*\.dcm", r"expected", r"."),
    P(74, "two series in a folder", "refused", r"series", r"found 2 series", r"expected one", r"Give|Move|folder"),
    P(74, "a slice of another orientation in the series", "refused", r"orientation", r"found", r"expected", r"."),
    P(75, "tilted gantry", "warned", r"affine", r"degrees", r"right angle", r"Resample"),
    P(76, "slopes that alternate between slices", "read"),
    P(77, "transfer syntax without a decoder", "refused", r"syntax|compress", r"found", r"expected", r"gdcm|dcmdjpeg|decompress|convert"),
    P(78, "no PixelSpacing", "refused", r"PixelSpacing", r"missing|found", r"", r"Export"),
    P(78, "no ImageOrientationPatient", "refused", r"ImageOrientationPatient", r"missing|found", r"", r"Export"),
    P(78, "no ImagePositionPatient", "refused", r"ImagePositionPatient", r"missing|found", r"", r"Export"),
    P(79, "a slice of another size", "refused", r"[Ss]ize|[Rr]ows|shape|pixels", r"found .*\d+", r"expected", r"."),
    P(80, "a truncated slice", "refused", r"", r"found \d+ .*bytes|found .*\d+", r"expected", AGAIN),
    P(80, "the last slice cut to 100 bytes", "refused", r"", r"found", r"expected", AGAIN),
    P(80, "the first slice empty", "refused", r"", r"found 0 bytes", r"expected", AGAIN),
    P(81, "multi-frame without positions", "refused", r"multi-frame", r"found", r"expected", r"Export"),
    P(82, "other files in the folder", "warned", r"file", r"found 2|2 (other )?files", r"", r"ignored|left out"),
    P(83, "DICOMDIR", "read"),
    P(83, "300 nested sequences", "read"),
    P(84, "zip with a member that leaves the folder", "refused", r"member|archive", r"\.\./x", r"", r"."),
    P(84, "zip with a link", "refused", r"member|archive", r"link", r"", r"."),
    P(84, "zip with a member of 10 GB", "refused", r"", r"bytes|GB|ratio|times", r"", r"."),
    P(85, "a single slice", "warned", r"slice|spacing|SliceThickness", r"found .*SliceThickness|thickness", r"expected", r"."),
)  # fmt: skip

CONFIGS = (
    P(86, "unknown keys", "refused", r"train\.lerning_rate", r"unknown key|found", r"line 6", r"Did you mean"),
    P(87, "patch of 8 voxels with 5 poolings", "refused", r"patch\.size", r"found \(8, 8, 8\)", r"expected more than \(32, 32, 32\)", r"fewer stages"),
    P(87, "patch of 20 voxels with 3 poolings, which networks pad by themselves", "read"),
    P(87, "overlap of 1.0", "refused", r"overlap", r"1\.0", r"less than 1", r""),
    P(87, "2D patch for a 3D model", "refused", r"patch\.size", r"found 2 sizes", r"expected 3", r""),
    P(88, "batch_size two", "refused", r"train\.batch_size", r"found 'two'", r"expected a whole number"),
    P(88, "batch_size -1", "refused", r"train\.batch_size", r"-1", r"at least 1|greater", r""),
    P(88, "lr NaN", "refused", r"train\.optimizer\.lr", r"nan", r"greater|finite", r""),
    P(89, "tabs in YAML", "refused", r"line 2", r"", r"", r"."),
    P(89, "a key twice", "refused", r"line", r"name", r"twice|once", r""),
    P(89, "a billion aliases", "refused", r"alias", r"", r"", r"."),
    P(90, "code in a config", "refused", r"_target_", r"unknown key|found", r"", r""),
    P(90, "python tag", "refused", r"python", r"tag|found", r"", r""),
    P(91, "override that matches nothing", "refused", r"trian", r"unknown|found", r"", r"Did you mean"),
)  # fmt: skip

MODELS = (
    P(92, "newest checkpoint cut, at each length", "continued", r"checkpoint|step-", r"found .*bytes", r"expected", r"older|earlier|step", slow=True),
    P(93, "flipped byte in the weights", "refused", r"model\.safetensors", r"found (SHA-256 )?[0-9a-f]{64}", r"expected [0-9a-f]{64}", r"[Cc]opy"),
    P(94, "weights of another architecture", "refused", r"layers? do", r"found \(", r"expected \(", r"config"),
    P(95, "model folder of a newer format", "refused", r"format", r"found 2", r"expected 1", r"Update medseg"),
    P(96, "pickle with code", "refused", r"", r"(posix|nt|os).*system", r"expected|only", r".", slow=True),
    P(97, "manifest missing", "refused", r"manifest", r"", r"", r"Copy"),
    P(97, "file that the manifest does not list", "refused", r"extra\.txt", r"", r"", r"Remove|Copy"),
    P(98, "nnU-Net plan with an unknown network class", "refused", r"network|architecture", r"found .*MyNet", r"expected", r".", slow=True),
)  # fmt: skip

FAULTS = (
    P(99, "learning rate of 1e9", "continued", r"loss|weights", r"found (nan|inf|NaN)", r"expected finite", r"cases? .*c\d.*Lower train\.optimizer\.lr|Lower train\.optimizer\.lr.*c\d"),
    P(100, "GPU out of memory", "refused", needs_gpu=True),
    P(101, "loader worker killed in training", "continued", r"train\.workers", r"worker process (\d+ )?", r"expected it to run until the end", r"lower train\.workers", slow=True),
    P(101, "prediction worker killed", "continued", r"process", r"signal|ended", r"", r"", slow=True),
    P(102, "/dev/shm too small", "continued", r"/dev/shm", r"found", r"expected", r"workers", slow=True),
    P(103, "SIGTERM in training", "continued", r"", r"step", r"", r"--resume", slow=True),
    P(104, "SIGKILL in training, then resumed", "continued", slow=True),
    P(105, "disk full in a checkpoint", "continued", r"cannot be written", r"No space left|File too large", r"", r"[Ff]ree space|[Cc]hoose"),
    P(106, "operation without a deterministic kernel", "refused", needs_gpu=True),
    P(107, "one of two ranks killed", "continued", slow=True),
    P(108, "second run in the same folder", "refused", r"lock|in use|training", r"process \d+|pid", r"", r"."),
    P(108, "lock of a dead process", "continued"),
    P(109, "image rewritten with the same size and time", "continued"),
    P(110, "case damaged during a training", "continued", r"c\d", r"found", r"expected", r".", slow=True),
)  # fmt: skip

COHORTS = (
    P(111, "one bad image among many", "refused", r"", r"found 0 bytes", r"", r"[Dd]ownload|again"),
    P(112, "1 file for a model of 2 channels", "refused", r"channels?", r"found 1", r"expected 2 \(T1, FLAIR\)", r"[Gg]ive"),
    P(112, "files of two channels of which one is missing", "refused", r"1 file is missing|missing", r"0001", r"", r"Restore|Add|Give"),
    P(113, "spacing 5 times that of the training", "warned", r"voxel size|spacing", r"found .*10 mm", r"trained on", r".", slow=True),
    P(113, "MR in a CT model", "warned", r"channel CT|intensit", r"found", r"trained on", r".", slow=True),
    P(114, "two inputs with one output name", "refused", r"a\.nii\.gz", r"found .*a\.nii", r"expected", r"."),
    P(115, "output over input", "refused", r"", r"replace|input", r"", r"[Cc]hoose another"),
    P(116, "existing output that was cut, with --skip-existing", "continued", r"0 of 2 cases predicted already|1 of 2 cases predicted already"),
    P(117, "memory budget of 1 byte", "refused", r"max_memory|max-memory", r"found 1e-06 MB", r"expected (more than|at least)", r"[Aa]llow|[Ll]ess|more memory"),
    P(118, "empty folder", "refused", r"", r"found no|found 0", r"expected", r"[Gg]ive|Check"),
    P(119, "Ctrl-C in a prediction", "continued", r"interrupted", r"kept", r"", r"--skip-existing", slow=True),
    P(120, "a reader that waits for ever", "refused", r"", r"pipe", r"expected", r"."),
    P(121, "input that vanishes", "refused", r"", r"no such file|missing", r"", r"."),
)  # fmt: skip

FILE_SYSTEM = (
    P(122, "output folder without write permission", "refused", r"cannot be written", r"Permission denied|Read-only|Not a directory", r"", r"Choose another folder"),
    P(123, "disk full in a prediction", "refused", r"cannot be written", r"No space left|File too large", r"", r"[Cc]hoose another folder|Free space"),
    P(124, "less free space than the outputs need", "refused", r"space", r"found .*(bytes|B)", r"expected .*(bytes|B)", r"[Ff]ree space|[Cc]hoose"),
    P(125, "letters of other scripts, spaces, long paths", "read"),
    P(126, "dashes, quotes and semicolons in names", "read"),
    P(127, "output that is a link out of the folder", "refused", r"", r"link", r"expected", r"."),
    P(128, "name that is too long for the file system", "refused", r"", r"too long", r"", r"Shorten"),
    P(128, "name that leaves no room for that of a temporary file", "read"),
    P(128, "names that differ in case only", "refused", r"", r"found", r"expected|case", r"."),
    P(129, "TMPDIR on another file system", "read"),
    P(130, "file without read permission", "refused", r"permission|mode", r"found", r"expected", r"chmod|[Pp]ermission"),
)  # fmt: skip

TABLE: tuple[P, ...] = (
    *VOLUME_FILES,
    *GEOMETRY,
    *LABELS,
    *DATASETS,
    *DICOM,
    *CONFIGS,
    *MODELS,
    *FAULTS,
    *COHORTS,
    *FILE_SYSTEM,
)


def numbered() -> list[tuple[int, P]]:
    """Return each line with its position among those of the same number."""
    seen: dict[int, int] = {}
    found = []
    for promise in TABLE:
        variant = seen.get(promise.number, 0)
        seen[promise.number] = variant + 1
        found.append((variant, promise))
    return found
