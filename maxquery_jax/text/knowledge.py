"""What is said of each class of ZePT Table 8 to a text encoder (ZePT Sec. 3.3, Table 10).

**No clinician has checked these descriptions.** The paper's were drafted by GPT-4 with the
instruction "The answer should encompass attributes related to its location, shape, size, and
anatomical structure", corrected by doctors, and never published; these were written for this
project to the same pattern, with the attenuation and enhancement on CT. They feed a weak
supervision signal and are no medical reference.

They are in American spelling, as are the texts that the encoders were trained on. Editing one
makes the embeddings that ship with the package stale; docs/knowledge.md says how to renew them.
"""

from collections.abc import Mapping

from maxquery_jax.errors import UserError

# How a class is presented to the encoder; the first is the paper's choice.
PROMPTS = ('description', 'plain', 'name')
PLAIN_PROMPT = 'A computerized tomography of a {name}.'

DESCRIPTIONS: Mapping[str, str] = {
    'spleen': (
        'The spleen lies in the left upper abdomen under the diaphragm, behind the stomach and '
        'above the left kidney. It is a single crescent-shaped or bean-shaped solid organ, about '
        '10 to 12 cm long, with a smooth capsule and a hilum facing the pancreatic tail. On CT it '
        'enhances in stripes in the arterial phase and evenly in the venous phase, slightly below '
        'the liver without contrast.'
    ),
    'right_kidney': (
        'The right kidney lies in the retroperitoneum to the right of the spine, below the liver '
        'and behind the duodenum, slightly lower than the left kidney. It is bean-shaped, about 10 '
        'to 12 cm long, with a hilum facing the midline. On CT the cortex enhances brightly first, '
        'then the medulla equals it; the central sinus holds fat, vessels and the renal pelvis.'
    ),
    'left_kidney': (
        'The left kidney lies in the retroperitoneum to the left of the spine, below the spleen '
        'and behind the pancreatic tail and descending colon, slightly higher than the right '
        'kidney. It is bean-shaped, about 10 to 12 cm long, with a hilum facing the midline. On CT '
        'the cortex enhances brightly first, then the medulla equals it; the central sinus holds '
        'fat, vessels and the renal pelvis.'
    ),
    'gall_bladder': (
        'The gallbladder hangs in a fossa under the right lobe of the liver, close to the duodenum '
        'and the hepatic flexure of the colon. It is a pear-shaped hollow sac, 7 to 10 cm long and '
        'up to 4 cm wide, with fundus, body and neck. On CT it is filled with bile of water '
        'density inside a wall thinner than 3 mm; stones may be dense.'
    ),
    'esophagus': (
        'The esophagus runs in the midline from the neck through the posterior mediastinum, behind '
        'the trachea and the left atrium and in front of the spine and aorta, to the stomach below '
        'the diaphragm. It is a muscular tube about 25 cm long and 2 cm wide. On CT it is a small '
        'round or flat structure of soft-tissue density, often collapsed, sometimes holding gas.'
    ),
    'liver': (
        'The liver fills the right upper abdomen beneath the diaphragm and reaches across the '
        'midline in front of the stomach. It is the largest solid abdominal organ, wedge-shaped, '
        'about 15 to 20 cm wide, with a right and a left lobe and eight segments. On CT it is '
        'homogeneous, 50 to 65 HU without contrast, brightest in the portal venous phase, crossed '
        'by hepatic and portal veins.'
    ),
    'stomach': (
        'The stomach lies in the left upper abdomen between the esophagus and the duodenum, in '
        'front of the pancreas and spleen and below the left lobe of the liver. It is a J-shaped '
        'hollow organ of variable size with fundus, body and antrum. On CT its wall of 5 to 10 mm '
        'shows folds and enhancing mucosa around gas, fluid, food or contrast medium.'
    ),
    'aorta': (
        'The aorta descends from the heart through the chest and along the left front of the spine '
        'to its division into the iliac arteries at the fourth lumbar vertebra. It is a round '
        'straight tube, 2 to 3 cm wide, giving off the celiac, mesenteric and renal arteries. On '
        'CT it is the brightest vessel in the arterial phase; its wall may carry calcified '
        'plaques.'
    ),
    'postcava': (
        'The postcava, or inferior vena cava, ascends to the right of the aorta in front of the '
        'spine, passes behind the liver and enters the right atrium. It is an oval, compressible '
        'vein, 2 to 3 cm wide, formed by the iliac veins and joined by renal and hepatic veins. On '
        'CT it enhances later than the aorta, often unevenly at the level of the renal veins.'
    ),
    'portal_vein_and_splenic_vein': (
        'The portal vein and splenic vein form one course: the splenic vein runs behind the '
        'pancreas from the splenic hilum to the right, joins the superior mesenteric vein behind '
        'the pancreatic neck, and continues as the portal vein to the liver hilum. They are '
        'branching tubes 8 to 15 mm wide. On CT they are bright and even in the portal venous '
        'phase.'
    ),
    'pancreas': (
        'The pancreas lies across the upper retroperitoneum behind the stomach, from the duodenal '
        'loop to the splenic hilum, in front of the splenic vein and aorta. It is an elongated '
        'lobulated gland, 12 to 18 cm long and 2 to 3 cm thick, with head, neck, body and tail. On '
        'CT it enhances most in the late arterial phase and has fatty clefts and a thin central '
        'duct.'
    ),
    'right_adrenal_gland': (
        'The right adrenal gland sits above the right kidney, behind the inferior vena cava, '
        'between the liver and the crus of the diaphragm. It is a thin linear or inverted Y-shaped '
        'gland, 2 to 4 cm long, with limbs less than 10 mm thick. On CT it is a small soft-tissue '
        'structure outlined by retroperitoneal fat, enhancing quickly and evenly.'
    ),
    'left_adrenal_gland': (
        'The left adrenal gland sits in front of the upper pole of the left kidney, beside the '
        'aorta and the left crus, behind the pancreas and splenic vein. It is a thin inverted '
        'Y-shaped or lambda-shaped gland, 2 to 4 cm long, with limbs less than 10 mm thick. On CT '
        'it is a small soft-tissue structure outlined by retroperitoneal fat, enhancing quickly '
        'and evenly.'
    ),
    'duodenum': (
        'The duodenum is the first part of the small bowel; it leaves the stomach, curves in a C '
        'around the head of the pancreas and crosses between the aorta and the superior mesenteric '
        'vessels to the jejunum. It is a tube 25 cm long and 2 to 3 cm wide, mostly '
        'retroperitoneal. On CT it has a thin folded enhancing wall around fluid, gas or contrast '
        'medium.'
    ),
    'hepatic_vessel': (
        'The hepatic vessels are the branching veins inside the liver: the right, middle and left '
        'hepatic veins running upward to the inferior vena cava, and the portal branches spreading '
        'from the liver hilum. They are tapering tree-like tubes from 15 mm down to about 1 mm. On '
        'CT they are brighter than the liver tissue in the portal venous phase and darker without '
        'contrast.'
    ),
    'right_lung': (
        'The right lung fills the right half of the chest above the diaphragm and the liver, '
        'beside the mediastinum and inside the ribs. It is a large cone-shaped air-filled organ of '
        'three lobes separated by two fissures, about 25 cm high. On CT it is very dark, around '
        '-850 HU, crossed by branching bright vessels and air-filled bronchi that spread from the '
        'hilum.'
    ),
    'left_lung': (
        'The left lung fills the left half of the chest above the diaphragm, stomach and spleen, '
        'beside the heart, which indents it, and inside the ribs. It is a large cone-shaped air- '
        'filled organ of two lobes separated by one fissure, about 25 cm high. On CT it is very '
        'dark, around -850 HU, crossed by branching bright vessels and air-filled bronchi that '
        'spread from the hilum.'
    ),
    'colon': (
        'The colon frames the abdomen: it ascends on the right from the cecum, crosses below the '
        'liver and stomach, descends on the left and ends in the S-shaped sigmoid above the '
        'rectum. It is a tube about 1.5 m long and 3 to 8 cm wide, sacculated by haustra. On CT '
        'its thin wall surrounds gas and mottled stool, with fat around it.'
    ),
    'intestine': (
        'The intestine, here the small bowel, lies coiled in the central abdomen between the '
        'duodenum and the cecum, hanging on the mesentery and framed by the colon. It is a winding '
        'tube several meters long and less than 3 cm wide, made up of jejunum and ileum. On CT its '
        'loops have a wall of 1 to 3 mm with feathery enhancing folds around fluid or gas.'
    ),
    'rectum': (
        'The rectum lies in the pelvis in front of the sacrum, behind the bladder and the prostate '
        'or uterus, between the sigmoid colon and the anal canal. It is a tube 12 to 15 cm long '
        'that follows the curve of the sacrum and widens in its lower ampulla. On CT a wall '
        'thinner than 5 mm surrounds gas or stool inside mesorectal fat.'
    ),
    'bladder': (
        'The urinary bladder lies in the front of the pelvis behind the pubic bones, in front of '
        'the rectum and above the prostate or in front of the uterus. It is a round or pyramid- '
        'shaped hollow muscular sac whose size varies with filling up to about 500 ml. On CT it '
        'holds urine of water density, bright once contrast is excreted, inside a thin smooth '
        'wall.'
    ),
    'prostate': (
        'The prostate lies deep in the male pelvis below the bladder, in front of the rectum and '
        'behind the pubic symphysis, around the urethra. It is a chestnut-shaped gland about 4 cm '
        'wide, larger with age. On CT it has soft-tissue density with weak zonal contrast and may '
        'contain calcifications; in women this label stands for the uterus, a pear-shaped '
        'enhancing organ between bladder and rectum.'
    ),
    'left_head_of_femur': (
        'The left head of femur sits in the cup of the left acetabulum at the side of the pelvis '
        'and joins the femoral neck, forming the hip joint. It is a ball of bone, about 4 to 5 cm '
        'across, two thirds of a sphere. On CT a thin bright cortical shell of several hundred HU '
        'surrounds less dense cancellous bone with trabeculae.'
    ),
    'right_head_of_femur': (
        'The right head of femur sits in the cup of the right acetabulum at the side of the pelvis '
        'and joins the femoral neck, forming the hip joint. It is a ball of bone, about 4 to 5 cm '
        'across, two thirds of a sphere. On CT a thin bright cortical shell of several hundred HU '
        'surrounds less dense cancellous bone with trabeculae.'
    ),
    'celiac_trunk': (
        'The celiac trunk leaves the front of the aorta just below the diaphragm, at the level of '
        'the twelfth thoracic vertebra, above the pancreas and the superior mesenteric artery. It '
        'is a short artery, 1 to 3 cm long and 6 to 8 mm wide, dividing into the hepatic, splenic '
        'and left gastric arteries. On CT it is very bright in the arterial phase.'
    ),
    'spleen_tumour': (
        'A spleen tumor is a focal mass within the spleen in the left upper abdomen, such as '
        'lymphoma, metastasis, hemangioma or angiosarcoma. It is round or irregular, single or '
        'multiple, from a few millimeters to more than 10 cm, and may enlarge the organ. On CT it '
        'is mostly darker than the enhanced spleen; hemangiomas may fill in from the edge, and '
        'necrosis leaves dark centers.'
    ),
    'kidney_tumour': (
        'A kidney tumor is a solid mass growing from the renal cortex, often bulging beyond the '
        'kidney outline, most commonly renal cell carcinoma. It is round or lobulated, from 1 cm '
        'to more than 10 cm, sometimes with a pseudocapsule. On CT the clear cell type enhances '
        'strongly and unevenly with necrosis, papillary types weakly; large tumors may invade the '
        'renal vein and perirenal fat.'
    ),
    'kidney_cyst': (
        'A kidney cyst is a fluid-filled sac in the cortex or medulla of a kidney, often at its '
        'surface, single or multiple. It is round or oval with a smooth sharp margin, from a few '
        'millimeters to more than 10 cm. On CT a simple cyst has a hairline wall, water density of '
        '0 to 20 HU and no enhancement; septa, calcification or nodules suggest complexity.'
    ),
    'gall_bladder_tumour': (
        'A gallbladder tumor arises from the gallbladder wall under the right lobe of the liver, '
        'usually an adenocarcinoma, often together with stones. It appears as an intraluminal '
        'polyp larger than 1 cm, uneven wall thickening, or a mass replacing the gallbladder. On '
        'CT it enhances irregularly and may invade the adjacent liver, obstruct the bile ducts and '
        'spread to lymph nodes at the liver hilum.'
    ),
    'esophagus_tumour': (
        'An esophageal tumor is a growth of the esophageal wall in the posterior mediastinum or at '
        'the junction with the stomach, usually squamous cell carcinoma or adenocarcinoma. It is '
        'an asymmetric or circular thickening of more than 5 mm over several centimeters that '
        'narrows the lumen, with a dilated segment above. On CT it enhances moderately and may '
        'blur the fat toward trachea and aorta.'
    ),
    'liver_tumour': (
        'A liver tumor is a focal mass inside the liver, either primary such as hepatocellular '
        'carcinoma and cholangiocarcinoma, or a metastasis, often multiple. It is round or '
        'lobulated, from a few millimeters to more than 10 cm. On CT hepatocellular carcinoma is '
        'bright in the arterial phase and washes out later, while metastases are usually darker '
        'than the liver in the portal venous phase, some with a rim.'
    ),
    'stomach_tumour': (
        'A stomach tumor is a mass of the gastric wall, mostly adenocarcinoma, also lymphoma or '
        'gastrointestinal stromal tumor. It appears as focal or diffuse wall thickening of more '
        'than 1 cm, an ulcerated or polypoid mass into the lumen, or a round growth outward, from '
        '1 to 15 cm. On CT it enhances more than the normal wall, effaces the folds and may invade '
        'nearby fat.'
    ),
    'aortic_tumour': (
        'An aortic tumor is a rare growth of the aortic wall or lumen, such as intimal sarcoma, in '
        'the chest or abdominal aorta beside the spine. It is an irregular, lobulated or polypoid '
        'filling defect or wall thickening a few centimeters long that narrows the vessel. On CT '
        'it is darker than the bright blood, may enhance, resembles thrombus and may send emboli '
        'to branches.'
    ),
    'postcava_tumour_thrombus': (
        'A postcava tumor thrombus is tumor growing inside the inferior vena cava, most often from '
        'a kidney tumor through the renal vein, or from liver or adrenal cancer. It is an '
        'elongated tongue-shaped filling defect, 2 to more than 10 cm long, that follows and '
        'widens the vein, sometimes up to the right atrium. On CT it is darker than the enhanced '
        'blood but itself enhances, with small vessels inside, unlike bland clot.'
    ),
    'portal_vein_tumour_thrombus': (
        'A portal vein tumor thrombus is tumor growing inside the portal vein or its branches in '
        'the liver, usually from hepatocellular carcinoma. It is a tubular or branching filling '
        'defect that expands the vein and touches the main mass, a few centimeters long. On CT it '
        'enhances in the arterial phase, is darker than blood in the portal venous phase, and '
        'disturbs liver perfusion.'
    ),
    'pancreas_tumour': (
        'A pancreas tumor lies in the head, body or tail of the pancreas behind the stomach, most '
        'often ductal adenocarcinoma, also neuroendocrine or cystic tumors. It is an ill-defined '
        'or round mass, 1 to 6 cm, with a dilated duct and shrunken gland upstream. On CT '
        'adenocarcinoma enhances less than the pancreas and encases vessels, neuroendocrine tumors '
        'are bright in the arterial phase, cystic ones near water.'
    ),
    'adrenal_tumour': (
        'An adrenal tumor is a solid nodule or mass of an adrenal gland above the kidney, such as '
        'adenoma, pheochromocytoma, carcinoma or metastasis. It is round or oval, 1 to 10 cm, and '
        'thickens or replaces the limbs of the gland. On CT adenomas are below 10 HU without '
        'contrast and wash out quickly; pheochromocytoma enhances strongly, and carcinoma is '
        'large, uneven and necrotic.'
    ),
    'adrenal_cyst': (
        'An adrenal cyst is a fluid-filled lesion of an adrenal gland above the kidney, such as an '
        'endothelial cyst or a pseudocyst after bleeding. It is round with a thin smooth wall, '
        'usually single, 1 to 10 cm or more. On CT it has near-water density, does not enhance '
        'inside, and may have septa or a rim of calcification, unlike a solid adrenal tumor.'
    ),
    'duodenal_tumour': (
        'A duodenal tumor is a growth of the wall of the duodenum around the head of the pancreas, '
        'often near the ampulla, such as adenocarcinoma, adenoma or gastrointestinal stromal '
        'tumor. It is a polypoid or ring-shaped thickening of 2 to 6 cm that narrows the lumen. On '
        'CT it enhances moderately, may ulcerate, and may dilate the stomach, bile duct and '
        'pancreatic duct.'
    ),
    'hepatic_vessel_tumour': (
        'A hepatic vessel tumor is a tumor in the liver lying next to or around the hepatic veins '
        'and portal branches, primary or metastatic. It is round, lobulated or irregular, 1 to 10 '
        'cm, and displaces, narrows or invades the vessels. On CT it is usually darker than the '
        'liver and the bright vessels in the portal venous phase, with unsharp margins or a rim.'
    ),
    'lung_tumour': (
        'A lung tumor is a solid nodule or mass inside an air-filled lung, such as primary lung '
        'cancer or a metastasis, near the hilum or the periphery. It is round, lobulated or '
        'spiculated, from a few millimeters to 10 cm. On CT it is of soft-tissue density, clearly '
        'brighter than the dark lung, sometimes with ground glass, a cavity or pleural tails, and '
        'enhances.'
    ),
    'lung_cyst': (
        'A lung cyst is a round air-filled space within the lung, often at the periphery or the '
        'base, single or multiple. It has a sharp smooth wall thinner than 2 mm and measures from '
        'a few millimeters to several centimeters. On CT it is darker than the surrounding lung, '
        'near -1000 HU, without enhancement; fluid inside may form a level.'
    ),
    'colon_tumour': (
        'A colon tumor is a growth of the wall of the large bowel, mostly adenocarcinoma, anywhere '
        'from the cecum to the sigmoid. It is a polypoid mass or a ring-shaped apple-core '
        'thickening, 2 to 8 cm, that narrows the lumen with abrupt shoulders. On CT it enhances '
        'moderately among gas and stool, with strands in the surrounding fat, enlarged nodes and '
        'dilated bowel upstream.'
    ),
    'small_intestinal_neoplasm': (
        'A small intestinal neoplasm is a tumor of the wall of jejunum or ileum in the central '
        'abdomen, such as carcinoid, adenocarcinoma, lymphoma or gastrointestinal stromal tumor. '
        'It is a nodule, ring-shaped thickening or mass growing out of the bowel, 1 to 10 cm. On '
        'CT carcinoids are bright with a radiating mesenteric mass; lymphoma is even and may widen '
        'the lumen; stromal tumors may be necrotic.'
    ),
    'rectal_tumour': (
        'A rectal tumor is a growth of the wall of the rectum in the pelvis in front of the '
        'sacrum, mostly adenocarcinoma. It is a polypoid, ulcerated or ring-shaped thickening, 2 '
        'to 8 cm long, that narrows the lumen one-sidedly or all around. On CT it is of soft- '
        'tissue density with moderate enhancement and may reach into the mesorectal fat, lymph '
        'nodes, prostate, uterus or sacrum.'
    ),
}


def spoken_name(name: str) -> str:
    """A class name as words, in American spelling: `liver_tumour` becomes `liver tumor`."""
    return name.replace('_', ' ').replace('tumour', 'tumor')


def build_prompt(name: str, prompt: str, descriptions: Mapping[str, str] = DESCRIPTIONS) -> str:
    """The text that stands for a class.

    Args:
        name: of the class.
        prompt: 'description', the plain prompt with the description after it (the rows "+
            Knowledge" of Table 10); 'plain', Table 10's "A computerized tomography of a [CLS].";
            'name', the bare name.
        descriptions: class name to description; the built-in ones, or a user's.

    Raises:
        UserError: an unknown prompt, or a class that has no description.
    """
    spoken = spoken_name(name)
    if prompt == 'name':
        return spoken
    if prompt == 'plain':
        return PLAIN_PROMPT.format(name=spoken)
    if prompt != 'description':
        raise UserError(f'prompt {prompt!r} is unknown; choose one of {", ".join(PROMPTS)}')
    if name not in descriptions:
        raise UserError(
            f'class {name!r} has no description; write one in a --texts file, or use '
            '--prompt=plain or --prompt=name'
        )
    return f'{PLAIN_PROMPT.format(name=spoken)} {descriptions[name]}'


def build_prompts(prompt: str, descriptions: Mapping[str, str] = DESCRIPTIONS) -> dict[str, str]:
    """The text of every class of `descriptions`, in its order; see `build_prompt`."""
    return {name: build_prompt(name, prompt, descriptions) for name in descriptions}
