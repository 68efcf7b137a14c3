from .backtracking import Training as Training
from .backtracking import train_backtracking as train_backtracking
from .repulse import train_repulse as train_repulse
from .settings import Repulse as Repulse
