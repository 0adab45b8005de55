"""The tasks of TotalSegmentator: data sets, spacing, labels, and where a coarse model crops the image first.

The names, values and spacings are those of TotalSegmentator 2.18. Tasks that need more than is described here, such as a
post-processing of their own, are not listed.
"""

from __future__ import annotations

from dataclasses import dataclass

from medseg.errors import ConfigError, did_you_mean

_FINE = (1.5, 1.5, 1.5)
_HEAD = (0.75, 0.75, 1.0)
_HIGH = "3d_fullres_high"
_LUNGS = "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right"
_NECK = "clavicula_left clavicula_right vertebrae_C1 vertebrae_C5 vertebrae_T1 vertebrae_T4"
_OPEN = "Apache-2.0"
_LICENSED = "TotalSegmentator licence (free for non-commercial use; commercial use needs a paid licence)"
_NON_COMMERCIAL = "CC BY-NC 4.0 (non-commercial use only)"

_TOTAL = (
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right "
    "adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right "
    "lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum "
    "colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 vertebrae_L5 "
    "vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11 vertebrae_T10 "
    "vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 vertebrae_T3 "
    "vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 vertebrae_C3 "
    "vertebrae_C2 vertebrae_C1 heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right "
    "subclavian_artery_left common_carotid_artery_right common_carotid_artery_left "
    "brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left superior_vena_cava "
    "inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left "
    "iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left "
    "clavicula_right femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left "
    "gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left "
    "gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull "
    "rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9 "
    "rib_left_10 rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5 "
    "rib_right_6 rib_right_7 rib_right_8 rib_right_9 rib_right_10 rib_right_11 rib_right_12 sternum "
    "costal_cartilages"
)

_TOTAL_MR = (
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right "
    "adrenal_gland_left lung_left lung_right esophagus small_bowel duodenum colon urinary_bladder "
    "prostate sacrum vertebrae intervertebral_discs spinal_cord heart aorta inferior_vena_cava "
    "portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right "
    "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left "
    "femur_right hip_left hip_right gluteus_maximus_left gluteus_maximus_right gluteus_medius_left "
    "gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right "
    "iliopsoas_left iliopsoas_right brain"
)

_VERTEBRAE_MR = (
    "sacrum vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11 "
    "vertebrae_T10 vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 "
    "vertebrae_T3 vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 "
    "vertebrae_C3 vertebrae_C2 vertebrae_C1"
)

_HEAD_GLANDS_CAVITIES = (
    "eye_left eye_right eye_lens_left eye_lens_right optic_nerve_left optic_nerve_right "
    "parotid_gland_left parotid_gland_right submandibular_gland_right submandibular_gland_left "
    "nasopharynx oropharynx hypopharynx nasal_cavity_right nasal_cavity_left auditory_canal_right "
    "auditory_canal_left soft_palate hard_palate"
)

_HEADNECK_BONES_VESSELS = (
    "larynx_air thyroid_cartilage hyoid cricoid_cartilage zygomatic_arch_right zygomatic_arch_left "
    "styloid_process_right styloid_process_left internal_carotid_artery_right "
    "internal_carotid_artery_left internal_jugular_vein_right internal_jugular_vein_left"
)

_HEAD_MUSCLES = (
    "masseter_right masseter_left temporalis_right temporalis_left lateral_pterygoid_right "
    "lateral_pterygoid_left medial_pterygoid_right medial_pterygoid_left tongue digastric_right "
    "digastric_left"
)

_HEADNECK_MUSCLES = (
    "sternocleidomastoid_right sternocleidomastoid_left superior_pharyngeal_constrictor "
    "middle_pharyngeal_constrictor inferior_pharyngeal_constrictor trapezius_right trapezius_left "
    "platysma_right platysma_left levator_scapulae_right levator_scapulae_left anterior_scalene_right "
    "anterior_scalene_left middle_scalene_right middle_scalene_left posterior_scalene_right "
    "posterior_scalene_left sterno_thyroid_right sterno_thyroid_left thyrohyoid_right thyrohyoid_left "
    "prevertebral_right prevertebral_left"
)

_OCULOMOTOR_MUSCLES = (
    "skull eyeball_right lateral_rectus_muscle_right superior_oblique_muscle_right "
    "levator_palpebrae_superioris_right superior_rectus_muscle_right medial_rectus_muscle_left "
    "inferior_oblique_muscle_right inferior_rectus_muscle_right optic_nerve_left eyeball_left "
    "lateral_rectus_muscle_left superior_oblique_muscle_left levator_palpebrae_superioris_left "
    "superior_rectus_muscle_left medial_rectus_muscle_right inferior_oblique_muscle_left "
    "inferior_rectus_muscle_left optic_nerve_right"
)

_VENTRICLE_PARTS = (
    "ventricle_frontal_horn_left ventricle_occipital_horn_left ventricle_body_left "
    "ventricle_temporal_horn_left ventricle_trigone_left ventricle_frontal_horn_right "
    "ventricle_occipital_horn_right ventricle_body_right ventricle_temporal_horn_right "
    "ventricle_trigone_right third_ventricle fourth_ventricle"
)

_LIVER_SEGMENTS = (
    "liver_segment_1 liver_segment_2 liver_segment_3 liver_segment_4 liver_segment_5 liver_segment_6 "
    "liver_segment_7 liver_segment_8"
)

_CRANIOFACIAL_STRUCTURES = "mandible teeth_lower skull head sinus_maxillary sinus_frontal teeth_upper"

_BRAIN_STRUCTURES = (
    "brainstem subarachnoid_space venous_sinuses septum_pellucidum cerebellum caudate_nucleus "
    "lentiform_nucleus insular_cortex internal_capsule ventricle central_sulcus frontal_lobe "
    "parietal_lobe occipital_lobe temporal_lobe thalamus"
)

_THIGH_SHOULDER_MUSCLES = (
    "quadriceps_femoris_left quadriceps_femoris_right thigh_medial_compartment_left "
    "thigh_medial_compartment_right thigh_posterior_compartment_left thigh_posterior_compartment_right "
    "sartorius_left sartorius_right deltoid supraspinatus infraspinatus subscapularis coracobrachial "
    "trapezius pectoralis_minor serratus_anterior teres_major triceps_brachii"
)


@dataclass(frozen=True)
class Task:
    """A task of TotalSegmentator.

    Attributes:
        name: Name, with ``_fast`` or ``_fastest`` for a coarser model of the same labels.
        datasets: Numbers of the data sets of its part models, in the order in which their label maps are combined.
        label_names: Names of the labels 1, 2, …, separated by spaces: those of the first part, then those of the second one, …
        spacing: Voxel size in mm to which images are resampled before nnU-Net sees them; None to leave it to nnU-Net.
        configuration: Configuration of nnU-Net.
        crop: Names of the labels, separated by spaces, around which the image is cropped first; empty for none.
        finer_crop: Whether the labels to crop around are found at 3 mm instead of 6 mm.
        all_folds: Whether all folds take part instead of fold 0.
        overlap: Overlap of neighbouring windows.
        keep_largest: Name of the label of which only the largest component is kept; empty for none.
        min_component_ml: Volume in ml by label; components that are not larger are removed.
        licence: Licence of the weights.
    """

    name: str
    datasets: tuple[int, ...]
    label_names: str
    spacing: tuple[float, float, float] | None = None
    configuration: str = "3d_fullres"
    crop: str = ""
    finer_crop: bool = False
    all_folds: bool = False
    overlap: float = 0.5
    keep_largest: str = ""
    min_component_ml: tuple[tuple[str, float], ...] = ()
    licence: str = _OPEN

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels 1, 2, …."""
        return tuple(self.label_names.split())

    @property
    def is_open(self) -> bool:
        """Whether the weights may be used for any purpose."""
        return self.licence == _OPEN

    @property
    def crop_task(self) -> str:
        """The name of the task whose labels the image is cropped around."""
        return (
            "total_mr_fast"
            if self.name.endswith("_mr")
            else "total_fast"
            if self.finer_crop
            else "total_fastest"
        )


def _total(name: str, datasets: tuple[int, ...], label_names: str) -> tuple[Task, ...]:
    """Return a task with its models for 1.5, 3 and 6 mm; the last two data sets are those of the coarse ones."""
    *parts, fast, fastest = datasets
    models = (("", tuple(parts), 1.5), ("_fast", (fast,), 3.0), ("_fastest", (fastest,), 6.0))
    return tuple(
        Task(name + mode, numbers, label_names, spacing=(size, size, size), overlap=0.2)
        for mode, numbers, size in models
    )


def _body(name: str, dataset: int, coarse: int) -> tuple[Task, ...]:
    """Return a task of the body's surface with its models for 1.5 and 6 mm."""
    return tuple(
        Task(
            name + mode,
            (number,),
            "body_trunc body_extremities",
            spacing=(size, size, size),
            keep_largest="body_trunc",
            min_component_ml=(("body_extremities", 50.0),),
        )
        for mode, number, size in (("", dataset, 1.5), ("_fast", coarse, 6.0))
    )


_TOTAL_V3 = _TOTAL.replace("vertebrae_S1", "vertebrae_L6")

_ALL = (
    *_total("total", (291, 292, 293, 294, 295, 297, 298), _TOTAL),
    *_total("total_v3", (831, 832, 833, 834, 835, 836, 837), _TOTAL_V3),
    *_total("total_mr", (850, 851, 852, 853), _TOTAL_MR),
    *_body("body", 299, 300),
    Task(
        "lung_vessels",
        (117,),
        "lung_airways lung_airways_wall lung_arteries lung_veins",
        spacing=(0.703125, 0.703125, 1.0),
        crop=_LUNGS,
        finer_crop=True,
    ),
    Task("cerebral_bleed", (150,), "intracerebral_hemorrhage", crop="brain"),
    Task("hip_implant", (260,), "hip_implant", crop="femur_left femur_right hip_left hip_right"),
    Task("vertebrae_mr", (756,), _VERTEBRAE_MR, spacing=_FINE),
    Task(
        "pleural_pericard_effusion",
        (315,),
        "lung_pleural pleural_effusion pericardial_effusion",
        crop=_LUNGS,
        all_folds=True,
    ),
    Task("liver_vessels", (8,), "liver_vessels liver_tumor", crop="liver"),
    Task(
        "head_glands_cavities",
        (775,),
        _HEAD_GLANDS_CAVITIES,
        spacing=_HEAD,
        configuration=_HIGH,
        crop="skull",
    ),
    Task(
        "headneck_bones_vessels",
        (776,),
        _HEADNECK_BONES_VESSELS,
        spacing=_HEAD,
        configuration=_HIGH,
        crop=_NECK,
    ),
    Task("head_muscles", (777,), _HEAD_MUSCLES, spacing=_HEAD, configuration=_HIGH, crop="skull"),
    Task("headneck_muscles", (778, 779), _HEADNECK_MUSCLES, spacing=_HEAD, configuration=_HIGH, crop=_NECK),
    Task(
        "oculomotor_muscles",
        (351,),
        _OCULOMOTOR_MUSCLES,
        spacing=(0.47251562774181366, 0.47251562774181366, 0.8500002026557922),
        crop="skull",
    ),
    Task("lung_nodules", (913,), "lung lung_nodules", spacing=_FINE, crop=_LUNGS),
    Task("breasts", (527,), "breast", spacing=_FINE),
    Task(
        "ventricle_parts", (552,), _VENTRICLE_PARTS, spacing=(0.4384765625, 0.4345703125, 1.0), crop="brain"
    ),
    Task(
        "liver_segments",
        (570,),
        _LIVER_SEGMENTS,
        spacing=(0.8046879768371582, 0.8046879768371582, 1.5),
        crop="liver",
    ),
    Task(
        "liver_segments_mr", (576,), _LIVER_SEGMENTS, spacing=(1.1250001788139343, 1.1875, 3.0), crop="liver"
    ),
    Task(
        "liver_lesions",
        (591,),
        "liver_lesions",
        spacing=_HEAD,
        configuration=_HIGH,
        crop="liver",
        finer_crop=True,
    ),
    Task(
        "liver_lesions_mr",
        (589,),
        "liver_lesions",
        spacing=(0.8603515625, 0.857421875, 1.0),
        crop="liver",
        finer_crop=True,
    ),
    Task("craniofacial_structures", (115,), _CRANIOFACIAL_STRUCTURES, spacing=(0.5, 0.5, 0.5), crop="skull"),
    Task("trunk_cavities", (343,), "abdominal_cavity thoracic_cavity pericardium mediastinum", spacing=_FINE),
    Task(
        "brain_aneurysm",
        (615,),
        "brain_aneurysm",
        spacing=(0.390625, 0.390625, 0.5000016391277313),
        all_folds=True,
        licence=_NON_COMMERCIAL,
    ),
    Task("vertebrae_body", (305,), "vertebrae_body intervertebral_discs", spacing=_FINE),
    Task(
        "tissue_types", (481,), "subcutaneous_fat torso_fat skeletal_muscle", spacing=_FINE, licence=_LICENSED
    ),
    Task(
        "tissue_types_mr",
        (925,),
        "subcutaneous_fat torso_fat skeletal_muscle",
        spacing=_FINE,
        licence=_LICENSED,
    ),
    Task(
        "tissue_4_types",
        (485,),
        "subcutaneous_fat torso_fat skeletal_muscle intermuscular_fat",
        spacing=_FINE,
        licence=_LICENSED,
    ),
    Task("face", (303,), "face", spacing=_FINE, licence=_LICENSED),
    Task(
        "brain_structures",
        (409,),
        _BRAIN_STRUCTURES,
        spacing=(0.5, 0.5, 1.0),
        configuration=_HIGH,
        crop="brain",
        licence=_LICENSED,
    ),
    Task("thigh_shoulder_muscles", (857,), _THIGH_SHOULDER_MUSCLES, spacing=_FINE, licence=_LICENSED),
    Task(
        "coronary_arteries",
        (509,),
        "coronary_arteries",
        spacing=(0.7, 0.7, 0.7),
        configuration=_HIGH,
        crop="heart",
        licence=_LICENSED,
    ),
    Task(
        "aortic_sinuses",
        (920,),
        "left_ventricular_outflow_tract right_coronary_cusp left_coronary_cusp non_coronary_cusp",
        spacing=(0.7, 0.7, 0.7),
        configuration=_HIGH,
        crop="heart",
        licence=_LICENSED,
    ),
)

TASKS = {task.name: task for task in _ALL}
"""The tasks by name."""


def task_named(name: str) -> Task:
    """Return a task.

    Args:
        name: Its name.

    Returns:
        The task.

    Raises:
        ConfigError: There is no such task.
    """
    if name not in TASKS:
        raise ConfigError(
            f"--task: found {name!r}, expected one of {', '.join(TASKS)}.{did_you_mean(name, TASKS)} Choose one of these, "
            "or import a single model with medseg import nnunet."
        )
    return TASKS[name]
