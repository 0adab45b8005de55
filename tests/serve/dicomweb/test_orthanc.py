"""A study in a real archive comes back to it as a segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

import medseg
from medseg.io.dicomweb.address import read_address
from medseg.io.dicomweb.server import DicomWeb
from medseg.io.dicomweb.web_session import DicomWebError
from tests.helpers.dicomweb_stub import ct_series
from tests.helpers.orthanc import PASSWORD, USER, orthanc
from tests.helpers.services import running


@pytest.mark.slow
@pytest.mark.extra("Orthanc")
def test_a_study_in_orthanc_returns_as_a_segmentation(toy_model: Path, tmp_path: Path) -> None:
    series = ct_series(tmp_path / "ct", StudyDescription="abdomen")
    header = pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True)
    study, uid = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
    with orthanc(tmp_path / "orthanc") as url:
        with pytest.raises(DicomWebError, match="status 401 Unauthorized: found no credentials"):
            DicomWeb(read_address(url, "url", {})).studies()
        variables = {"MEDSEG_DICOMWEB_USER": USER, "MEDSEG_DICOMWEB_PASSWORD": PASSWORD}
        server = DicomWeb(read_address(url, "url", variables))
        assert server.studies() == []
        for file in series.iterdir():
            server.store(file)
        for found in (
            server.studies(accession="A1"),
            server.studies(date="2020-01-01"),
            server.studies(study=study),
        ):
            assert [(one.uid, one.description, one.num_series) for one in found] == [(study, "abdomen", 1)]
        assert [(one.uid, one.num_instances) for one in server.series(study)] == [(uid, 8)]

        with running(tmp_path / "service", toy_model, dicomweb=server) as service:
            wanted = {"study": study, "series": uid}
            job = service.finished(service.client.post("/api/dicomweb/jobs", json=wanted).json()["id"])
            assert (job["state"], job["stored"], job["message"]) == ("done", True, "")
            missing = {"study": study, "series": "1.2.3"}
            failed = service.finished(service.client.post("/api/dicomweb/jobs", json=missing).json()["id"])
            assert (failed["state"], failed["failure"]) == ("failed", "dicomweb")

        (listed,) = [one for one in server.series(study) if one.modality == "SEG"]
        server.retrieve(study, listed.uid, tmp_path / "seg")
        labels = medseg.read_labels(tmp_path / "seg" / "00000.dcm", like=series)
        np.testing.assert_array_equal(labels.data, medseg.load(toy_model, device="cpu")(series).data)
