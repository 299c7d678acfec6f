"""The names of the phantom's tissues and the numbers that stand for them in a label volume."""

from __future__ import annotations

LABELS: dict[str, int] = {
    "air": 0,
    "fat": 1,
    "skin": 2,
    "muscle": 3,
    "bone": 4,  # cortical bone
    "marrow": 5,  # cancellous bone with its marrow
    "disc": 6,
    "canal": 7,  # dural sac with cord or cauda equina
    "lung": 8,
    "heart": 9,
    "liver": 10,
    "gallbladder": 11,
    "spleen": 12,
    "pancreas": 13,
    "renal_cortex": 14,
    "renal_medulla": 15,
    "urine": 16,  # renal pelvis; not opacified yet at 70 s
    "adrenal": 17,
    "stomach": 18,  # its wall
    "bowel": 19,  # its wall
    "gut_content": 20,
    "gut_gas": 21,
    "aorta": 22,
    "arteries": 23,  # coeliac, splenic, hepatic, superior mesenteric, renal and iliac arteries
    "ivc": 24,
    "portal_vein": 25,  # with its hepatic branches, splenic and superior mesenteric vein
    "hepatic_veins": 26,
    "renal_vessels": 27,  # renal veins (renal arteries are "arteries": their enhancement is the aorta's)
    "lesion": 28,
    "cyst": 29,
    "table": 30,
}
