"""Real models and data by name, the user's own files, reproducible splits, and batches."""

from .base_models import PACKAGED_MODELS as PACKAGED_MODELS
from .base_models import default_target_modules as default_target_modules
from .base_models import load_base_model as load_base_model
from .bits import Quantization as Quantization
from .bits import check_quantization as check_quantization
from .catalogue import TASKS as TASKS
from .catalogue import Task as Task
from .catalogue import load_task as load_task
from .dtypes import faster_dtype as faster_dtype
from .encoding import Form as Form
from .encoding import label_token_ids as label_token_ids
from .examples import Examples as Examples
from .files import load_file as load_file
from .files import load_prompts as load_prompts
from .loaders import make_loader as make_loader
from .packages import Package as Package
from .packages import fetch as fetch
from .pins import PACKAGES as PACKAGES
from .splits import Splits as Splits
from .splits import split as split
