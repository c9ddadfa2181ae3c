"""Images with labels from folders, IDX, parquet, the Hub and tar shards, as batches in [-1, 1]; caches of tokens.

`build_dataset` opens what a `DataConfig` names, `make_loader` turns it into the batches of steps, `eval_batches` reads
it once in order.
"""

from genaim.data.build import build_dataset as build_dataset
from genaim.data.dataset import BadFiles as BadFiles
from genaim.data.dataset import Batch as Batch
from genaim.data.dataset import DataConfig as DataConfig
from genaim.data.dataset import ImageDataset as ImageDataset
from genaim.data.dataset import Sample as Sample
from genaim.data.dataset import collate as collate
from genaim.data.loader import Loader as Loader
from genaim.data.loader import StepSampler as StepSampler
from genaim.data.loader import eval_batches as eval_batches
from genaim.data.loader import make_loader as make_loader
from genaim.data.moments import MomentsDataset as MomentsDataset
from genaim.data.moments import cache_moments as cache_moments
from genaim.data.sources import SourceConfig as SourceConfig
from genaim.data.streams import StreamDataset as StreamDataset
from genaim.data.token_cache import TokenDataset as TokenDataset
from genaim.data.token_cache import build_token_cache as build_token_cache
from genaim.data.transforms import image_to_tensor as image_to_tensor
from genaim.data.transforms import parse_color as parse_color
from genaim.data.transforms import tensor_to_pil as tensor_to_pil
